"""Reduced checkpoints of the released text models, with a real tokenizer, as the Hub has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForCausalLM, logging

from llamagen import api
from llamagen.spec.registry import Registry

logging.set_verbosity_error()
logging.disable_progress_bar()

TEXT = """The capital of France is Paris, and that of Spain is Madrid. A model of language is trained to predict the
next token of a text; what it has read decides what it knows. def add(a, b): return a + b; 1, 2, 3, 40, 500, 6000.
Die Hauptstadt von Österreich ist Wien. In 2024 the context grew to 131,072 tokens. It's what we saw: they'll see."""

PLAIN_TOKENS = 320
VOCABULARY = 328
"""A few rows more than the tokenizer has, as in Code Llama."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Layout:
    """How a generation's tokenizer is laid out. ``tokens`` are the special ones: begin, end, and those of a chat."""

    tokens: tuple[str, ...]
    bos: int
    eos: int
    tokenizer_class: str

    @property
    def ends(self) -> list[int]:
        """Ids that end an answer."""
        return [self.eos, self.eos + 1] if len(self.tokens) > 2 else [self.eos]


LLAMA_2 = Layout(("<s>", "</s>"), 1, 2, "LlamaTokenizer")
LLAMA_3 = Layout(
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ),
    PLAIN_TOKENS,
    PLAIN_TOKENS + 1,
    "PreTrainedTokenizerFast",
)


def llama_3_tokenizer() -> Tokenizer:
    """Byte-level BPE with Llama 3's word pattern and special tokens, trained on ``TEXT``."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(_LLAMA_3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PLAIN_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    assert tokenizer.get_vocab_size() == PLAIN_TOKENS
    _finish(tokenizer, LLAMA_3)
    return tokenizer


def llama_2_tokenizer() -> Tokenizer:
    """BPE over characters with byte fallback and a mark for spaces, as converted from SentencePiece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=PLAIN_TOKENS,
        special_tokens=["<unk>", *LLAMA_2.tokens, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
        limit_alphabet=40,
    )
    tokenizer.train_from_iterator(TEXT.split(), trainer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    stored = json.loads(tokenizer.to_str())
    stored["added_tokens"] = stored["added_tokens"][:3]  # the bytes are ordinary entries
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    _finish(tokenizer, LLAMA_2)
    return tokenizer


def _finish(tokenizer: Tokenizer, layout: Layout) -> None:
    """Special tokens, and the first of them at the beginning of every text."""
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in layout.tokens]
    )
    first = layout.tokens[0]
    assert [tokenizer.token_to_id(t) for t in layout.tokens[:2]] == [layout.bos, layout.eos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0",
        pair=f"{first}:0 $A:0 {first}:1 $B:1",
        special_tokens=[(first, layout.bos)],
    )


@dataclass(frozen=True)
class TextModel:
    """One released model, its sizes reduced; everything else is the released one's."""

    id: str
    layout: Layout = LLAMA_3

    @property
    def yaml(self) -> str:
        """A spec with the widths of a toy and the heads of the original: one key/value head each, or for four."""
        resolved = Registry().load(self.id)
        h = resolved.spec.hyperparameters
        kv = 8 if h.num_kv_heads == h.num_heads else 2
        swiglu = (
            "invariants: {swiglu_width: null}\n"
            if "swiglu_width" in resolved.spec.invariants
            else ""
        )
        return (
            f"spec: 1\nid: reduced/{self.id}\nextends: {self.id}\ntitle: reduced\n"
            f"hyperparameters:\n  vocab_size: {VOCABULARY}\n  hidden_size: 64\n  num_layers: 3\n  num_heads: 8\n"
            f"  num_kv_heads: {kv}\n  head_dim: 8\n  intermediate_size: 96\n{swiglu}"
            f"tokenizer:\n  bos_id: {self.layout.bos}\n  eos_ids: {self.layout.ends}\n  pad_id: null\n"
            f"  special_tokens: null\n"
        )

    def spec(self, folder: Path) -> Path:
        path = folder / "reduced.yaml"
        path.write_text(self.yaml, encoding="utf-8")
        return path

    def tokenizer(self) -> Tokenizer:
        return llama_2_tokenizer() if self.layout is LLAMA_2 else llama_3_tokenizer()

    def checkpoint(self, folder: Path, seed: int = 5) -> Path:
        """A checkpoint in bfloat16 with its tokenizer, as a download from the Hub looks."""
        out = folder / "checkpoint"
        api.random_checkpoint(self.spec(folder), out, seed=seed, dtype="bfloat16")
        _soften(out / "model.safetensors")
        self.tokenizer().save(str(out / "tokenizer.json"))
        config = {
            "tokenizer_class": self.layout.tokenizer_class,
            "add_bos_token": True,
            "bos_token": self.layout.tokens[0],
            "eos_token": self.layout.tokens[1],
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        (out / "tokenizer_config.json").write_text(json.dumps(config))
        if self.layout is LLAMA_3:
            (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        (out / "generation_config.json").write_text(
            json.dumps({"bos_token_id": self.layout.bos, "eos_token_id": self.layout.ends})
        )
        return out


def _soften(weights: Path) -> None:
    """With tied embeddings at unit scale a model repeats its last token for ever: let the layers outweigh them."""
    state = load_file(weights)
    if "lm_head.weight" not in state:
        state["model.embed_tokens.weight"] /= 16
        save_file(state, weights, {"format": "pt"})


def greedy(checkpoint: Path, rows: list[list[int]], new_tokens: int) -> list[list[int]]:
    """What transformers generates behind each prompt, one at a time, with the end token if it came."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    found = []
    for row in rows:
        ids = torch.tensor([row])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=model.config.bos_token_id,
        )
        found.append(made[0, len(row) :].tolist())
    return found
