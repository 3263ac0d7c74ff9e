-- Samples with the very same tokens, those that waste most first. Reads every token of the store.
-- pipeline?: only this pipeline
-- stream?: only this stream
-- least_tokens = 1: leave out what is shorter
-- limit = 100: at most so many groups
-- reads: samples, content
select stream, count(distinct sample) as copies, any_value(tokens) as tokens,
    (count(distinct sample) - 1) * any_value(tokens) as tokens_wasted,
    list(distinct key order by key)[:5] as keys,
    list(distinct source order by source)[:5] as files, content
from samples
where content is not null and tokens >= $least_tokens::bigint
    and ($pipeline::varchar is null or pipeline = $pipeline)
    and ($stream::varchar is null or stream = $stream)
group by stream, content
having count(distinct sample) > 1
order by tokens_wasted desc, content
limit $limit::bigint
