"""Tokenizer plug-ins that ship with tokenmill; others come by the group tokenmill.tokenizers."""
