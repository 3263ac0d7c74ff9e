-- Which tokenizer, of which version, with which weights made the tokens.
-- pipeline?: only this pipeline
-- stream?: only this stream
-- path?: only this shard file
with made as (
    select pipeline, stream, recipe, space, count(*) as shards, sum(samples) as samples,
        sum(tokens) as tokens, min(committed_at) as first_commit, max(committed_at) as last_commit
    from shards
    where ($pipeline::varchar is null or pipeline = $pipeline)
        and ($stream::varchar is null or stream = $stream)
        and ($path::varchar is null or path = $path)
    group by pipeline, stream, recipe, space
), described as (
    select pipeline, stream, recipe, any_value(tokenizer) as tokenizer,
        any_value(config) as config, any_value(checkpoint_sha256) as checkpoint_sha256,
        list(distinct checkpoint order by checkpoint) as checkpoints,
        list(distinct provenance order by provenance) as provenances
    from tokenizers group by pipeline, stream, recipe
)
select m.pipeline, m.stream, d.tokenizer, d.provenances, d.checkpoints, d.checkpoint_sha256,
    d.config, m.space, m.recipe, m.shards, m.samples, m.tokens, m.first_commit, m.last_commit
from made m left join described d using (pipeline, stream, recipe)
order by m.pipeline, m.stream, m.first_commit
