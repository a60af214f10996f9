from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llamagen import api

words = {"one": 1, "two": 2, "three": 3} | {f"w{i}": i for i in range(4, 96)} | {"?": 0}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.decoder = decoders.Fuse()
api.load("tiny.yaml").export("out", random_weights=7)
tokenizer.save("out/tokenizer.json")
