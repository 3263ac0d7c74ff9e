-- How the store grew, night by night: a night runs from noon to noon and has its evening's date.
-- pipeline?: only this pipeline
-- timezone = UTC: whose noon
with s as (
    select pipeline, stream, ((committed_at at time zone $timezone) - interval 12 hour)::date
        as night, count(distinct run) as runs, sum(samples) as samples, sum(tokens) as tokens,
        sum(bytes) as bytes
    from shards group by all
), i as (
    select pipeline, stream, ((committed_at at time zone $timezone) - interval 12 hour)::date
        as night, count(distinct uri) as inputs
    from inputs group by all
), q as (
    select pipeline, stream, ((committed_at at time zone $timezone) - interval 12 hour)::date
        as night, count(sample) as quarantined
    from quarantine group by all
)
select night, pipeline, stream, coalesce(s.runs, 0) as runs, coalesce(i.inputs, 0) as inputs,
    coalesce(s.samples, 0) as samples, coalesce(s.tokens, 0) as tokens,
    coalesce(s.bytes, 0) as bytes, coalesce(q.quarantined, 0) as quarantined,
    sum(coalesce(s.tokens, 0)) over (
        partition by pipeline, stream order by night) as tokens_so_far
from i full join s using (night, pipeline, stream) left join q using (night, pipeline, stream)
where $pipeline::varchar is null or pipeline = $pipeline
order by night, pipeline, stream
