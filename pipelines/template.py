"""The commented job file that `tokenmill init` writes."""

JOB_TEMPLATE = """\
# A tokenmill job. `tokenmill init --schema` prints its JSON Schema for editors.
# Relative paths start at this file's folder.
name: my-corpus
store: tokens                      # a folder, or s3://bucket/prefix

pipelines:
  docs:
    source:
      uri: corpus                  # a folder, a file, a glob, s3://..., or a list of these
      format: text                 # text | jsonl | parquet | webdataset | files
      # include: ["**/*.txt"]      # folders only
      # identity: version          # version | content | path: what makes an input a new one
      # max_sample_bytes: 67108864 # a larger sample is quarantined
    streams:
      text:
        tokenizer: bpe             # `tokenmill tokenizers list`
        checkpoint: tokenizer.json # tokenizer.json, .tiktoken or SentencePiece .model
        # field: text              # where the source has several
        # sha256: ...              # checked before the checkpoint is parsed
        # required: false          # true: a sample without the field is quarantined
        config:
          special_tokens: text     # text | encode | refuse: one that stands in raw text
          # bos: true              # or a token; added before each document
          # eos: true

# resources: {text: {cpus_per_worker: 1, gpus_per_worker: 0, workers: {max: 64}}}
# policy: {quarantine_share: 0.05, attempts: 3}
# limits: {minutes: 60, until: "06:00"}   # a graceful stop: what is finished is committed, exit 4
"""
