-- Which runs did not finish, and why; one that is still at work has the state `started`.
-- pipeline?: only this pipeline
select started_at, ended_at, pipeline, job, run, state,
    (summary->>'$.exit_code')::bigint as exit_code, summary->>'$.why' as why, host
from runs
where state <> 'finished' and ($pipeline::varchar is null or pipeline = $pipeline)
order by started_at desc
