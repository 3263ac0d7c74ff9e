-- What failed and why: samples and inputs without tokens, by reason.
-- pipeline?: only this pipeline
-- stream?: only this stream
-- reason?: only this reason
with enumerated as (
    select pipeline, stream, sum(rows) as rows from inputs group by all
)
select q.pipeline, q.stream, q.reason, q.stage, count(q.sample) as samples,
    count(*) filter (where q.sample is null) as damaged_inputs,
    count(distinct q.uri) as files,
    round(count(q.sample) / nullif(any_value(e.rows), 0), 6)::double as share,
    arg_min(q.key, q.key) as example, arg_min(q.message, q.key) as message,
    arg_min(q.error, q.key) as error, max(q.committed_at) as last_commit
from quarantine q left join enumerated e using (pipeline, stream)
where ($pipeline::varchar is null or q.pipeline = $pipeline)
    and ($stream::varchar is null or q.stream = $stream)
    and ($reason::varchar is null or q.reason = $reason)
group by q.pipeline, q.stream, q.reason, q.stage
order by samples desc, damaged_inputs desc, q.pipeline, q.stream, q.reason, q.stage
