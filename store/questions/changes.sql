-- What changed between two snapshots of the store: units added, removed, encoded again, superseded.
-- before (snapshot): the older one, a tag or a hash; the newer one is the store as it is now (or --tag, --snapshot)
with new as (
    select pipeline, stream, unit, list(path order by path) as paths, sum(samples) as samples,
        sum(tokens) as tokens, sum(bytes) as bytes, min(recipe) as recipe,
        list(exclude order by path) as exclude
    from _snapshot group by pipeline, stream, unit
), old as (
    select pipeline, stream, unit, list(path order by path) as paths, sum(samples) as samples,
        sum(tokens) as tokens, sum(bytes) as bytes, min(recipe) as recipe,
        list(exclude order by path) as exclude
    from before_shards group by pipeline, stream, unit
), units as (
    select coalesce(n.pipeline, o.pipeline) as pipeline, coalesce(n.stream, o.stream) as stream,
        case when o.unit is null then 'added'
            when n.unit is null then 'removed'
            when n.recipe <> o.recipe then 'encoded again, another recipe'
            when n.paths <> o.paths then 'encoded again'
            when n.exclude <> o.exclude then 'rows superseded'
        end as change,
        o.samples as samples_before, n.samples as samples_now, o.tokens as tokens_before,
        n.tokens as tokens_now, o.bytes as bytes_before, n.bytes as bytes_now,
        o.recipe as recipe_before, n.recipe as recipe_now
    from new n full join old o
        on n.pipeline = o.pipeline and n.stream = o.stream and n.unit = o.unit
)
select pipeline, stream, change, count(*) as units,
    coalesce(sum(samples_before), 0) as samples_before,
    coalesce(sum(samples_now), 0) as samples_now,
    coalesce(sum(tokens_before), 0) as tokens_before, coalesce(sum(tokens_now), 0) as tokens_now,
    coalesce(sum(bytes_now), 0) - coalesce(sum(bytes_before), 0) as more_bytes,
    recipe_before, recipe_now
from units where change is not null
group by pipeline, stream, change, recipe_before, recipe_now
order by pipeline, stream, change, recipe_before, recipe_now
