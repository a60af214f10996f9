import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llamagen import api

words = {"one": 1, "two": 2, "three": 3, "<system>": 4, "<user>": 5, "<assistant>": 6}
words |= {f"w{i}": i for i in range(7, 96)} | {"?": 0}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer.decoder = decoders.Fuse()
api.load("tiny.yaml").export("out", random_weights=7)
tokenizer.save("out/tokenizer.json")
Path("out/chat_template.jinja").write_text(
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}<assistant>"
)
said = [("user", "one"), ("assistant", "two"), ("user", "three")]
Path("said.json").write_text(json.dumps([{"role": who, "content": what} for who, what in said]))
