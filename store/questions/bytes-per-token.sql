-- Bytes of source and of shards for each token, and tokens for each sample.
-- pipeline?: only this pipeline
with s as (
    select pipeline, stream, any_value(modality) as modality, sum(samples) as samples,
        sum(tokens) as tokens, sum(bytes) as bytes from shards group by pipeline, stream
), i as (
    select pipeline, stream, sum(span_end - span_start) as bytes_read
    from inputs group by pipeline, stream
)
select pipeline, stream, s.modality, s.samples, s.tokens, i.bytes_read, s.bytes,
    i.bytes_read / nullif(s.tokens, 0) as source_bytes_per_token,
    s.bytes / nullif(s.tokens, 0) as shard_bytes_per_token,
    s.tokens / nullif(s.samples, 0) as tokens_per_sample
from s left join i using (pipeline, stream)
where $pipeline::varchar is null or pipeline = $pipeline
order by pipeline, stream
