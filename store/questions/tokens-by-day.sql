-- Tokens by modality, source and day.
-- pipeline?: only this pipeline
-- timezone = UTC: whose days
with roots as (
    select pipeline, lower(hex(unit)) as unit,
        string_agg(distinct coalesce(nullif(root, ''), uri), ', '
            order by coalesce(nullif(root, ''), uri)) as source
    from _ledger where kind = 'input' group by all
)
select (s.committed_at at time zone $timezone)::date as day, s.modality, r.source, s.pipeline,
    s.stream, sum(s.samples) as samples, sum(s.tokens) as tokens, sum(s.bytes) as bytes,
    sum(s.superseded_rows) as superseded_rows
from shards s left join roots r on r.pipeline = s.pipeline and r.unit = s.unit
where $pipeline::varchar is null or s.pipeline = $pipeline
group by day, s.modality, r.source, s.pipeline, s.stream
order by day, s.modality, r.source, s.pipeline, s.stream
