-- Which raw file a token or a sample came from.
-- path?: the shard file, as in the view `shards`
-- token?: with path: the token at this position of the file, from 0
-- row?: with path: the row of the file, from 0
-- sample?: a sample's id, in hex
-- key?: a sample's key
-- stream?: only this stream
-- one of: path, sample, key
-- reads: samples
with wanted as (
    select * from samples
    where ($path::varchar is null or path = $path)
        and ($token::bigint is null
            or (first_token <= $token::bigint and $token::bigint < first_token + tokens))
        and ($row::bigint is null or row = $row::bigint)
        and ($sample::varchar is null or sample = lower($sample))
        and ($key::varchar is null or key = $key)
        and ($stream::varchar is null or stream = $stream)
    limit 1000
)
select w.source as file, arg_max(i.version, i.seq) as version, w.key, w.span, w.sample,
    w.verdict, w.pipeline, w.stream, w.path, w.row, w.first_token, w.tokens,
    arg_max(i.run, i.seq) as run, max(i.committed_at) as committed_at
from wanted w left join _ledger i
    on i.kind = 'input' and i.pipeline = w.pipeline and i.stream = w.stream
    and lower(hex(i.unit)) = w.unit
    and i.first_row <= w.unit_row and w.unit_row < i.first_row + i.rows
group by all
order by w.pipeline, w.stream, w.path, w.row
