-- Where the workers' time went, run by run: reading, decoding, encoding, writing, waiting.
-- pipeline?: only this pipeline
-- run?: only this run
with units as (
    select distinct pipeline, stream, run, unit, seq, stats, with_tokens, committed_at
    from _ledger where kind = 'unit'
        and ($pipeline::varchar is null or pipeline = $pipeline)
        and ($run::varchar is null or run = $run)
)
select run, pipeline, stream, count(*) as units, sum(with_tokens) as samples,
    round(sum((stats->>'$.read')::double), 3) as read_s,
    round(sum((stats->>'$.prepare')::double), 3) as decode_s,
    round(sum((stats->>'$.encode')::double), 3) as encode_s,
    round(sum((stats->>'$.write')::double), 3) as write_s,
    round(sum((stats->>'$.wait')::double), 3) as encoder_waited_s,
    round(sum((stats->>'$.wall')::double), 3) as wall_s,
    sum((stats->>'$.bytes_read')::bigint) as bytes_read
from units group by run, pipeline, stream order by max(committed_at) desc, pipeline, stream
