"""A model that reads images, with a tokenizer that knows its special tokens, and a chat template."""

import json
from pathlib import Path

from seeing import exported
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

exported()
special = {"<s>": 53, "<|image|>": 56, "<user>": 50, "<assistant>": 51}
words = {f"w{i}": i for i in range(50)} | special | {"?": 0}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
tokenizer.add_special_tokens(list(special))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.decoder = decoders.Fuse()
tokenizer.save("out/tokenizer.json")
Path("out/tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
Path("out/chat_template.jinja").write_text(
    "{{ bos_token }}{% for m in messages %}<user>{% for c in m.content %}"
    "{{ '<|image|>' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}<assistant>"
)
