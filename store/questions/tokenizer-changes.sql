-- What changed between one version of a stream's tokenizer and the next: recipe, weights, packages.
-- pipeline?: only this pipeline
-- stream?: only this stream
with versions as (
    select pipeline, stream, committed_at, run, recipe,
        json_merge_patch(
            json_object('space', space, 'recipe', recipe, 'checkpoint', checkpoint,
                'checkpoint_sha256', checkpoint_sha256),
            json_object('config', config::json, 'parts', parts::json,
                'provenance', provenance::json)) as document
    from tokenizers
    where ($pipeline::varchar is null or pipeline = $pipeline)
        and ($stream::varchar is null or stream = $stream)
), leaves as (
    select v.pipeline, v.stream, v.committed_at, v.run, t.fullkey as part, t.atom as value
    from versions v, json_tree(v.document) t where t.atom is not null
), steps as (
    select pipeline, stream, committed_at as changed_at, run, lag(committed_at) over (
        partition by pipeline, stream order by committed_at, run) as before_at,
        lag(run) over (partition by pipeline, stream order by committed_at, run) as before_run
    from versions
), parts as (
    select distinct s.pipeline, s.stream, s.changed_at, s.run, s.before_at, s.before_run, l.part
    from steps s join leaves l on l.pipeline = s.pipeline and l.stream = s.stream
        and ((l.committed_at = s.changed_at and l.run = s.run)
            or (l.committed_at = s.before_at and l.run = s.before_run))
    where s.before_at is not null
)
select p.pipeline, p.stream, p.changed_at, p.run, ltrim(p.part, '$.') as part,
    o.value as before, n.value as now
from parts p
left join leaves o on o.pipeline = p.pipeline and o.stream = p.stream
    and o.committed_at = p.before_at and o.run = p.before_run and o.part = p.part
left join leaves n on n.pipeline = p.pipeline and n.stream = p.stream
    and n.committed_at = p.changed_at and n.run = p.run and n.part = p.part
where o.value is distinct from n.value
order by p.pipeline, p.stream, p.changed_at, p.part
