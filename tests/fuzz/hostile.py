"""Hostile specs as changes of one small model."""

# ruff: noqa: E501  one case a line

from __future__ import annotations

TINY = """\
spec: 1
id: hostile/model
title: A model
doc: A doc.
hyperparameters:
  vocab_size: 13
  hidden_size: 8
  num_layers: 2
  num_heads: 2
  num_kv_heads: 1
  head_dim: 4
  intermediate_size: 6
  max_positions: 64
  norm_eps: 1.0e-6
  rope: {kind: default, theta: 10000.0}
patterns:
  kinds: {cycle: [plain, other]}
root: CausalLM
blocks:
  CausalLM:
    doc: The model.
    inputs: [input_ids]
    parts:
      embed_tokens: embedding(vocab_size, hidden_size)
      layers: stack(num_layers, Layer(kind=kinds[layer]))
      lm_head: linear(hidden_size, vocab_size)
    forward: |
      return lm_head(layers(embed_tokens(input_ids)))
  Layer:
    doc: A layer.
    options: {kind: plain}
    parts:
      norm: rms_norm(hidden_size, eps=norm_eps)
      q_proj: linear(hidden_size, num_heads * head_dim)
      k_proj: linear(hidden_size, num_kv_heads * head_dim)
      o_proj: linear(num_heads * head_dim, hidden_size)
    forward: |
      n = norm(x) * (2 if kind == 'plain' else 3)
      q = rope(split_heads(q_proj(n), num_heads), positions, rope)
      k = split_heads(k_proj(n), num_kv_heads)
      k, v = cache(rope(k, positions, rope), k)
      return x + o_proj(merge_heads(attention(q, k, v, mask='causal')))
"""

TEN_LINES = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))
CYRILLIC_A = "\u0430"

REFUSED: dict[str, tuple[str, str, str]] = {
    # YAML
    "alias bomb": ("spec: 1\n", f"spec: 1\na0: &a0 [x, x, x, x, x, x, x, x, x]\n{TEN_LINES}\n", "LG011"),
    "cyclic alias": ("title: A model", "title: &a [*a]", "LG011"),
    "merge key": ("spec: 1\n", "spec: 1\n<<: {id: x/y}\n", "LG016"),
    "python tag": ("title: A model", "title: !!python/object/apply:os.system ['touch hacked']", "LG012"),
    "deep nesting": ("title: A model", "title: " + "[" * 2000 + "]" * 2000, "LG007"),
    "deeper nesting": ("title: A model", "title: " + "[" * 100_000, "LG006"),
    "a line of a megabyte": ("title: A model", "title: " + "x" * 1_000_000, "LG006"),
    "a file of two megabytes": ("title: A model", "title: x\n" + "# comment\n" * 210_000, "LG002"),
    "a hundred thousand keys": ("title: A model", "title: x\nconstants:\n" + "".join(f"  k{i}: 1\n" for i in range(100_000)), "LG002"),
    "duplicate key": ("doc: A doc.", "doc: A doc.\ndoc: Another.", "LG015"),
    "number of a thousand digits": ("vocab_size: 13", "vocab_size: " + "9" * 1000, "LG023"),
    # sizes
    "10^9 layers": ("num_layers: 2", "num_layers: 1000000000", "LG103"),
    "10^9 layers in the stack": ("stack(num_layers, ", "stack(1000000000, ", "LG410"),
    "negative layers": ("stack(num_layers, ", "stack(-1, ", "LG410"),
    "size of 2^62": ("hidden_size: 8", "hidden_size: 4611686018427387904", "LG103"),
    "size of 2^62 in a part": ("linear(hidden_size, vocab_size)", "linear(hidden_size, 2 ** 62)", "LG420"),
    "product of sizes": ("linear(hidden_size, vocab_size)", "linear(hidden_size, 2147483647 * 2147483647)", "LG420"),
    "power tower": ("linear(hidden_size, vocab_size)", "linear(hidden_size, 9 ** 9 ** 9 ** 9)", "LG410"),
    "list of 10^9": ("n = norm(x)", "n = norm(x) * len(range(1000000000))", "LG411"),
    "text doubled": ("kind == 'plain'", "kind == 'x'" + " + 'x'" * 600, "LG411"),
    "nan": ("norm_eps: 1.0e-6", "norm_eps: .nan", "LG021"),
    "infinity": ("theta: 10000.0", "theta: .inf", "LG021"),
    "negative vocabulary": ("vocab_size: 13", "vocab_size: -13", "LG103"),
    "head of 2^31 features": ("head_dim: 4", "head_dim: 2147483646", "LG411"),
    "version that is true": ("spec: 1\n", "spec: true\n", "LG103"),
    "version with a point": ("spec: 1\n", "spec: 1.0\n", "LG103"),
    "infinity of float32": ("(2 if kind", "(1e39 if kind", "LG411"),
    "zero of float32": ("norm(x) * (2 if", "norm(x) / (1e-39 if", "LG411"),
    "attribute that float32 has not": ("mask='causal')", "mask='causal', scale=1e39)", "LG411"),
    "epsilon that float32 has not": ("norm_eps: 1.0e-6", "norm_eps: 1.0e-300", "LG410"),
    # recursion
    "block in itself": ("lm_head: linear(hidden_size, vocab_size)", "lm_head: CausalLM", "LG404"),
    "base that is not there": ("spec: 1\n", "spec: 1\nextends: hostile.yaml\n", "LG202"),
    "deep parentheses": ("n = norm(x)", "n = " + "(" * 300 + "norm(x)" + ")" * 300, "LG411"),
    "long sum": ("n = norm(x)", "n = " + "x + " * 900 + "norm(x)", "LG411"),
    "long product of powers": ("linear(hidden_size, vocab_size)", "linear(hidden_size, " + "1 ** " * 700 + "1)", "LG410"),
    "long call": ("n = norm(x)", "n = " + "norm(" * 400 + "x" + ")" * 400, "LG411"),
    # names
    "path in the id": ("id: hostile/model", "id: ../../hostile/model", "LG103"),
    "absolute id": ("id: hostile/model", "id: /tmp/hostile", "LG103"),
    "dots in the id": ("id: hostile/model", "id: hostile/../../../etc/model", "LG103"),
    "id with a line end": ("id: hostile/model", 'id: "hostile/model\\nx"', "LG103"),
    "id of 300 letters": ("id: hostile/model", f"id: hostile/{'m' * 300}", "LG103"),
    "id of a device": ("id: hostile/model", "id: hostile/model:stream", "LG103"),
    "base outside": ("spec: 1\n", "spec: 1\nextends: ../../../../etc/passwd\n", "LG202"),
    "base outside, as a file": ("spec: 1\n", "spec: 1\nextends: ../../../../etc/hostname.yaml\n", "LG202"),
    "base with a null": ("spec: 1\n", 'spec: 1\nextends: "llama/\\0x"\n', "LG004"),
    "base with a long name": ("spec: 1\n", f"spec: 1\nextends: {'x' * 3000}\n", "LG202"),
    "look-alike of a key": ("vocab_size: 13", f"voc{CYRILLIC_A}b_size: 13", "LG017"),
    "look-alike of a name": ("rms_norm(hidden_size,", f"rms_norm(hidden_size + 0 * he{CYRILLIC_A}d_dim,", "LG410"),
    "look-alike of a block": ("  Layer:\n", f"  L{CYRILLIC_A}yer:\n", "LG017"),
    "full-width digits": ("vocab_size: 13", "vocab_size: \uff11\uff13", "LG103"),
    "text that turns around": ("title: A model", "title: A \u202eledom", "LG004"),
    "invisible letter in a part": ("q_proj: linear", "q\u200b_proj: linear", "LG004"),
    "code as a block": ("  Layer:\n", "  \"Layer(nn.Module): import os #\":\n", "LG017"),
    "code as a part": ("q_proj: linear", "\"q_proj = __import__('os').system('x') #\": linear", "LG017"),
    "code as a value": ("n = norm(x)", "n; import os = norm(x)", "LG411"),
    "code as an option": ("options: {kind: plain}", "options: {\"kind=1): pass #\": plain}", "LG017"),
    "dunder attribute": ("n = norm(x)", "n = norm(x.__class__.__mro__)", "LG411"),
    "import": ("n = norm(x)", "n = __import__('os').system('touch hacked')", "LG411"),
    "lambda": ("n = norm(x)", "n = (lambda: x)()", "LG411"),
    "comprehension": ("n = norm(x)", "n = [x for x in [1]]", "LG411"),
    "walrus": ("n = norm(x)", "n = (y := norm(x))", "LG411"),
    "f-string": ("kind == 'plain'", "kind == f'{x}'", "LG411"),
    "python name of a part": ("q_proj: linear", "__init__: linear", "LG411"),
    "tied to another file": ("linear(hidden_size, vocab_size)", "linear(hidden_size, vocab_size, tied_to='../../x')", "LG420"),
    "template in a type": ("rms_norm(hidden_size,", "rms_norm('{{ 7 * 7 }}',", "LG410"),
    "unknown op": ("attention(q,", "eval(q,", "LG411"),
}  # fmt: skip
"""Name -> (text, what stands there instead, code of a finding)."""

MARK = "PWNED"
"""Stands in every payload: where it is outside a text, something is wrong."""

PAYLOADS: dict[str, str] = {
    "end of a docstring": f'x""" \nimport os\nos.system("{MARK}")\n"""',
    "end of a comment": f"x\nimport os  # {MARK}",
    "backslash": f"{MARK}\\",
    "template": "{{ cycler.__init__.__globals__.os.popen('" + MARK + "') }}{% raw %}",
    "markup": f"</title></text></code><script>alert('{MARK}')</script><img src=x onerror=\"{MARK}()\">",
    "entity": f"&lt;script&gt;{MARK}&quot; onload=&quot;x",
    "cdata": f"]]><script>{MARK}</script><!--",
    "format": f"{MARK} {{0.__class__}} %s %(x)s $" + "{jndi}",
    "mermaid": f'x"]; click A "javascript:{MARK}()"',
    "workflow command": f"x%0A::error file=x::{MARK}",
    "terminal": f"[2J {MARK} [/] [red]",
    "path": f"../../{MARK}/../x",
    "formula": f"=HYPERLINK('{MARK}')",
}
"""Texts that a spec may hold, and that must stay texts in everything that is made of it."""

TOGETHER = " ".join(PAYLOADS.values())
