"""Every exercise takes right answers of any style, and says of wrong ones what is wrong and nothing that is not so."""

# ruff: noqa: E501  (an answer is one line, as it is shown to whom it fails)

import contextlib
import inspect
import io
import re

import numpy as np
import pandas as pd
import pytest
import torch

from finetuning import check
from finetuning.check import exercise
from finetuning.data import fingerprint

NAMED = {one.__name__: one for found in check.EXERCISES.values() for one in found}
LESSON = {one.__name__: lesson for lesson, found in check.EXERCISES.items() for one in found}

# exercise -> right answers of different styles: (code, the name of the function in it), or an expression
RIGHT = {
    "leaks": [
        "lambda train, test: len([t for t in train if F(t) in [F(r) for r in test]])",
        "lambda train, test: sum(F(t) in set(map(F, test)) for t in train)",
        "lambda train, test: pd.Series(train, dtype=object).map(F).isin(list(map(F, test))).sum()",
        "lambda train, test: float(np.isin([F(t) for t in train], [F(t) for t in test]).sum())",
        "lambda train, test: sum(w(t) in [w(r) for r in test] for t in train)",
    ],
    "star_words": [
        "lambda stars: map(lambda s: 'negative' if s < 5 else 'positive' if s > 6 else None, stars)",
        "lambda stars: ('negative' if s <= 4 else 'positive' if s >= 7 else None for s in stars)",
        "lambda stars: pd.Series(stars, dtype=int).map({**dict.fromkeys(range(1, 5), 'negative'), **dict.fromkeys(range(7, 11), 'positive')})",
        "lambda stars: np.array(['negative'] * 4 + [None] * 2 + ['positive'] * 4, dtype=object)[np.array(stars, int) - 1]",
        "lambda stars: tuple({True: 'negative', False: 'positive'}[s < 5] if s not in (5, 6) else None for s in stars)",
    ],
    "length_limit": [
        "lambda x, share: np.quantile(x, 1 - share, method='inverted_cdf')",
        "lambda x, share: next(y for y in sorted(x) if sum(z > y for z in x) <= share * len(x))",
        "lambda x, share: next(n for n in range(max(x) + 1) if np.mean(np.array(x) > n) <= share)",
        "lambda x, share: sorted(x, reverse=True)[int(share * len(x))]",
        "lambda x, share: float(min(pd.Series(x)[[(pd.Series(x) > y).mean() <= share for y in x]]))",
    ],
    "padding_waste": [
        "lambda x, n: round(1 - sum(x) / sum(len(x[i:i + n]) * max(x[i:i + n]) for i in range(0, len(x), n)), 4)",
        "lambda x, n: sum(max(b) - y for i in range(0, len(x), n) for b in [x[i:i + n]] for y in b) / sum(max(x[i:i + n]) * len(x[i:i + n]) for i in range(0, len(x), n))",
        "lambda x, n: 1 - sum(x) / pd.Series(x).groupby(np.arange(len(x)) // n).transform('max').sum()",
        "lambda x, n: torch.tensor(1 - sum(x) / sum(max(x[i // n * n:i // n * n + n]) for i in range(len(x))))",
    ],
    "majority": [
        "lambda a, b: np.mean(np.array(b) == np.bincount(a).argmax())",
        "lambda a, b: round(b.count(max(a, key=a.count)) / len(b), 4)",
        "lambda a, b: (pd.Series(b) == pd.Series(a).mode()[0]).mean()",
        "lambda a, b: torch.tensor(b).eq(torch.tensor(a).mode().values).float().mean()",
        "lambda a, b: Fraction(b.count(round(sum(a) / len(a))), len(b))",
    ],
    "interval": [
        "lambda r, n: [round(r / n - 1.96 * (r / n * (1 - r / n) / n) ** .5, 4), round(r / n + 1.96 * (r / n * (1 - r / n) / n) ** .5, 4)]",
        "lambda r, n: r / n + np.array([-1.96, 1.96]) * np.sqrt(r / n * (1 - r / n) / n)",
        "lambda r, n: (r / n + s * 1.959964 * (r * (n - r) / n ** 3) ** .5 for s in (-1, 1))",
        "lambda r, n: [max(0, r / n - 1.96 * (r * (n - r) / n ** 3) ** .5), min(1, r / n + 1.96 * (r * (n - r) / n ** 3) ** .5)]",
        "lambda r, n: pd.Series({'low': -1, 'high': 1}) * 1.96 * (r * (n - r) / n ** 3) ** .5 + r / n",
    ],
    "decisive_word": [
        "lambda text, weights: max(set(text.split()), key=lambda w: abs(text.split().count(w) * weights.get(w, 0)))",
        "lambda text, weights: max(text.split(), key=lambda w: (Counter(text.split())[w] * weights.get(w, 0)) ** 2)",
        "lambda text, weights: pd.Series([weights.get(w, 0) for w in text.split()], index=text.split()).groupby(level=0).sum().abs().idxmax()",
        "lambda text, weights: sorted((abs(text.split().count(w) * weights[w]), w) for w in weights)[-1][1]",
        "lambda text, weights: np.array(text.split())[np.argmax([abs(text.split().count(w) * weights.get(w, 0)) for w in text.split()])]",
    ],
    "choose_prompt": [
        "lambda a, b: [max(a, key=a.get), b[max(a, key=a.get)]]",
        "lambda a, b: (lambda p: (p, b[p]))(pd.Series(a).idxmax())",
        "lambda a, b: iter((sorted(a, key=a.get)[-1], round(b[sorted(a, key=a.get)[-1]], 4)))",
        "lambda a, b: next((p, b[p]) for p in a if a[p] == max(a.values()))",
        "lambda a, b: max((a[p], p, b[p]) for p in a)[1:]",
    ],
    "mask_padding": [
        "lambda labels, pad: np.where(np.array(labels) == pad, -100, labels)",
        "lambda labels, pad: torch.tensor(labels).masked_fill(torch.tensor(labels) == pad, -100)",
        "lambda labels, pad: ((-100 if t == pad else t for t in row) for row in labels)",
        "lambda labels, pad: pd.DataFrame(labels).replace(pad, -100)",
        "lambda labels, pad: map(lambda row: tuple({pad: -100}.get(t, t) for t in row), labels)",
    ],
    "positive_probability": [
        "lambda x, words: torch.softmax(torch.tensor(x)[:, words], dim=1)[:, 1]",
        "lambda x, words: 1 / (1 + np.exp(x[:, words[0]] - x[:, words[1]]))",
        "lambda x, words: [round(float(np.exp(r[words[1]]) / (np.exp(r[words[0]]) + np.exp(r[words[1]]))), 4) for r in x]",
        "lambda x, words: (1 / (1 + np.exp(r[words[0]] - r[words[1]])) for r in x)",
        "lambda x, words: pd.DataFrame(np.exp(x[:, words])).pipe(lambda d: d[1] / d.sum(axis=1))",
    ],
    "pick_training": [
        "lambda t: max((c['accuracy'], r, c['epoch'], max(d['epoch'] for d in f if d['whole'])) for r, f in t.items() for c in f if c['whole'])[1:]",
        "lambda t: (lambda d: (lambda b: (b.rate, b.epoch, d[d.rate == b.rate].epoch.max()))(d.loc[d.accuracy.idxmax()]))(pd.DataFrame([{'rate': r, **c} for r, f in t.items() for c in f if c['whole']]))",
        "lambda t: (lambda w: (lambda r: [r, max(w[r], key=lambda c: c['accuracy'])['epoch'], w[r][-1]['epoch']])(max(filter(w.get, w), key=lambda r: max(c['accuracy'] for c in w[r]))))({r: [c for c in f if c['whole']] for r, f in t.items()})",
        "lambda t: np.array(max([(c['accuracy'], r, c['epoch'], sum(d['whole'] for d in f)) for r, f in t.items() for c in f if c['whole']])[1:])",
    ],
    "bought": [
        "lambda a: np.array([a['trainer'] - a['from_scratch'], a['trainer'] - a['as_shipped']]) * 100",
        "lambda a: (round(100 * (a['trainer'] - a[k]), 1) for k in ('from_scratch', 'as_shipped'))",
        "lambda a: 100 * (a['trainer'] - pd.Series(a)[['from_scratch', 'as_shipped']])",
        "lambda a: map(lambda k: 100 * a['trainer'] - 100 * a[k], ['from_scratch', 'as_shipped'])",
    ],
    "accumulated_loss": [
        "lambda m: np.mean(sum(m, []))",
        "lambda m: round(sum(x for b in m for x in b) / sum(len(b) for b in m), 4)",
        "lambda m: torch.cat([torch.tensor(b) for b in m]).mean()",
        "lambda m: np.average([np.mean(b) for b in m], weights=[len(b) for b in m])",
        "lambda m: pd.Series(m).explode().astype(float).mean()",
    ],
    "zero_bytes": [
        "lambda n, stage, ranks: n * ([2, 2, 2, 2 / ranks][stage] + [2, 2, 2 / ranks, 2 / ranks][stage] + [12, *[12 / ranks] * 3][stage])",
        "lambda n, stage, ranks: int(n * (16, 4 + 12 / ranks, 2 + 14 / ranks, 16 / ranks)[stage])",
        "lambda n, stage, ranks: sum(expected_bytes(n, stage, ranks, bf16=True).values())",
        "lambda n, stage, ranks: np.sum(n * np.array([2, 2, 12]) / np.where(np.array([3, 2, 1]) <= stage, ranks, 1))",
    ],
    "reshard": [
        "lambda s, n, r: np.pad(np.concatenate(s)[:n], (0, -n % r)).reshape(r, -1)",
        "lambda s, n, r: torch.nn.functional.pad(torch.tensor(s).flatten()[:n], (0, -n % r)).view(r, -1)",
        "lambda s, n, r: ([(sum(s, [])[:n] + [0] * r)[i * -(-n // r) + j] if i * -(-n // r) + j < n else 0 for j in range(-(-n // r))] for i in range(r))",
        "lambda s, n, r: list(zip(*[iter(sum(s, [])[:n] + [0] * (-n % r))] * -(-n // r)))",
    ],
    "lowest_stage": [
        "lambda n, r, m: next((s for s in range(4) if sum(expected_bytes(n, s, r, bf16=True).values()) <= m), None)",
        "lambda n, r, m: min((s for s, b in enumerate((16, 4 + 12 / r, 2 + 14 / r, 16 / r)) if n * b <= m), default=None)",
        "lambda n, r, m: 0 if 16 * n <= m else 1 if n * (4 + 12 / r) <= m else 2 if n * (2 + 14 / r) <= m else 3 if 16 * n / r <= m else None",
        "lambda n, r, m: (lambda fit: np.argmax(fit) if any(fit) else None)(n * np.array([16, 4 + 12 / r, 2 + 14 / r, 16 / r]) <= m)",
    ],
    "mcnemar": [
        "lambda a, b: (lambda x, y: stats.binomtest(x, x + y).pvalue if x + y else 1)(sum(p > q for p, q in zip(a, b)), sum(q > p for p, q in zip(a, b)))",
        "lambda a, b: (lambda d: stats.binomtest(int((d > 0).sum()), int((d != 0).sum())).pvalue if d.any() else 1.0)(np.array(a) - np.array(b))",
        "lambda a, b: (lambda d: round(min(1, 2 * stats.binom.cdf(min((d > 0).sum(), (d < 0).sum()), (d != 0).sum(), 0.5)), 4))(np.subtract(a, b))",
        "lambda a, b: (lambda x, n: min(1, sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(2 * x - n)) / 2 ** n))(sum(p > q for p, q in zip(a, b)), sum(p != q for p, q in zip(a, b)))",
    ],
    "calibration_error": [
        "lambda c, r, e: sum(abs(c[m].mean() - r[m].mean()) * m.mean() for m in [(c > l) & (c <= h) for l, h in zip(e, e[1:])] if m.any())",
        "lambda c, r, e: sum(abs((c - r)[np.digitize(c, e, right=True) == i].sum()) for i in range(1, len(e))) / len(c)",
        "lambda c, r, e: pd.DataFrame({'c': c, 'r': r}).groupby(pd.cut(c, e), observed=True).apply(lambda g: abs(g.c.sum() - g.r.sum())).sum() / len(c)",
        "lambda c, r, e: round(float(np.abs(np.bincount(np.searchsorted(e, c), weights=c - r)).sum() / len(c)), 4)",
        "lambda c, r, e: sum(abs(sum(x - y for x, y in zip(c, r) if e[i] < x <= e[i + 1])) for i in range(e.size - 1)) / c.size",
    ],
    "negation_slice": [
        r"lambda text: re.search(r'''\b(not|no|never|without)\b|n't\b''', text, re.I)",
        r"lambda text: bool(set(re.findall(r'''[\w']+''', text.lower())) & {'not', 'no', 'never', 'without'}) or '''n't''' in text.lower()",
        r"lambda text: len([w for w in re.split(r'''[^a-z']+''', text.lower()) if w in ('not', 'no', 'never', 'without') or w.endswith('''n't''')])",
        r"lambda text: np.any([w.strip('.,!?') in ('not', 'no', 'never', 'without') or '''n't''' in w for w in text.lower().split()])",
        r"lambda text: pd.Series([text.lower()]).str.contains(r'''\b(?:not|no|never|without)\b|n't''').iloc[0]",
    ],
    "stream_answers": [
        "def f(texts, predict, size):\n while batch := list(islice(texts, size)):\n  yield from predict(batch)",
        "lambda texts, predict, size: (a for b in iter(lambda: list(islice(texts, size)), []) for a in predict(b))",
        "lambda texts, predict, size: chain.from_iterable(map(predict, iter(lambda: tuple(islice(texts, size)), ())))",
        "class f:\n def __init__(s, t, p, n): s.t, s.p, s.n, s.a = t, p, n, []\n def __iter__(s): return s\n def __next__(s):\n  if not s.a:\n   batch = list(islice(s.t, s.n))\n   s.a = s.p(batch)[::-1] if batch else []\n  if not s.a: raise StopIteration\n  return s.a.pop()",
        "def f(texts, predict, size):\n batch = []\n for t in texts:\n  batch.append(t)\n  if len(batch) == size:\n   yield from predict(batch); batch = []\n if batch: yield from predict(batch)",
    ],
}  # fmt: skip

# exercise -> wrong answers in other words than the table's own, and what must be said to each
WRONG = {
    "leaks": [
        ("lambda train, test: len([t for t in train if t in set(test)])", "letter by letter"),
        ("lambda train, test: sum(t.strip(' .,').lower() in {r.strip(' .,').lower() for r in test} for t in train)", "ends of a text only"),
        ("lambda train, test: sum(any(set(F(t).split()) == set(F(r).split()) for r in test) for t in train)", "sets of words"),
        ("lambda train, test: sum(sorted(F(t).split()) in [sorted(F(r).split()) for r in test] for t in train)", "inputs, and wrong for this one"),
        ("lambda train, test: len({F(t) for t in train}.intersection(map(F, test)))", "count reviews, not different texts"),
        ("lambda train, test: sum(map(F, train).count(F(t)) for t in train)", "error in line 1 of its cell"),
        ("lambda train, test: [t for t in train if F(t) in set(map(F, test))]", "asked is a number, and your function returned a list"),
    ],
    "star_words": [
        ("lambda stars: ['positive' if s <= 4 else 'negative' if s >= 7 else None for s in stars]", "swapped"),
        ("lambda stars: ['Negative' if s <= 4 else 'Positive' if s > 6 else None for s in stars]", "spelt so"),
        ("lambda stars: ['negative' if s <= 4 else 'positive' for s in stars if s not in (5, 6)]", "one entry per review"),
        ("lambda stars: ['negative' if s <= 4 else 'positive' if s >= 7 else '' for s in stars]", "(None and a text)"),
        ("lambda stars: {s: 'negative' if s <= 4 else 'positive' if s >= 7 else None for s in stars}", "asked is a list, and your function returned a dict"),
        ("lambda stars: ['negative' if s <= 4 else 'positive' if s >= 7 else None for s in sorted(stars)]", "wrong for this one"),
    ],
    "length_limit": [
        ("lambda x, share: float(pd.Series(x).quantile(1 - share))", "that is a quantile"),
        ("lambda x, share: round(np.percentile(x, 100 - 100 * share))", "rounded quantile"),
        ("lambda x, share: math.ceil(np.quantile(x, 1 - share))", "raised to a whole number"),
        ("lambda x, share: sorted(x)[round(len(x) * (1 - share)) - 1]", "wrong for this one"),
        ("lambda x, share: x[int(share * len(x))]", "wrong for this one"),
        ("lambda x, share: next(y for y in sorted(x) if sum(z >= y for z in x) <= share * len(x))", "wrong for this one"),
    ],
    "padding_waste": [
        ("lambda x, n: (lambda x: 1 - sum(x) / sum(len(x[i:i + n]) * max(x[i:i + n]) for i in range(0, len(x), n)))(sorted(x))", "you sorted the reviews first"),
        ("lambda x, n: (len(x) * max(x) - sum(x)) / (len(x) * max(x))", "longest of all"),
        ("lambda x, n: np.mean([1 - sum(b) / (len(b) * max(b)) for b in (x[i:i + n] for i in range(0, len(x), n))])", "you average the shares"),
        ("lambda x, n: sum(x) / sum(len(x[i:i + n]) * max(x[i:i + n]) for i in range(0, len(x), n))", "share of real tokens"),
        ("lambda x, n: f'{1 - sum(x) / len(x) / max(x):.2%}'", "asked is a number, and your function returned a text"),
        ("lambda x, n: sum(max(x[i:i + n]) - x[i] for i in range(len(x)))", "wrong for this one"),
    ],
    "majority": [
        ("lambda a, b: max(np.mean(b), 1 - np.mean(b))", "chosen by the test labels"),
        ("lambda a, b: b.count(a[0]) / len(b)", "first label of train"),
        ("lambda a, b: b.count(max(set(a))) / len(b)", "wrong for this one"),
        ("lambda a, b: max(a.count(0), a.count(1)) / len(a)", "measured on test"),
        ("lambda a, b: 100 * b.count(round(np.mean(a))) / len(b)", "not a percentage"),
        ("lambda a, b: b.count(min(a, key=a.count)) / len(b)", "wrong for this one"),
        ("lambda a, b: round(b.count(round(np.mean(a))) / len(b), 1)", "wrong for this one"),
    ],
    "interval": [
        ("lambda r, n: (r / n - (r / n * (1 - r / n) / n) ** .5, r / n + (r / n * (1 - r / n) / n) ** .5)", "one standard error"),
        ("lambda r, n: stats.binomtest(r, n).proportion_ci(method='wilson')", "Wilson"),
        ("lambda r, n: (0.7216, 0.8784)", "wrong for this one"),
        ("lambda r, n: 1.96 * (r / n * (1 - r / n) / n) ** .5", "asked is a list, and your function returned a number"),
        ("lambda r, n: (r / n + 1.96 * (r * (n - r) / n ** 3) ** .5, r / n - 1.96 * (r * (n - r) / n ** 3) ** .5)", "upper end comes first"),
        ("lambda r, n: f'{r / n}'", "returned a text"),
    ],
    "decisive_word": [
        ("lambda text, weights: max(text.split(), key=lambda w: abs(text.count(w) * weights.get(w, 0)))", "looks for letters"),
        ("lambda text, weights: max(text.split(), key=lambda w: weights.get(w, 0) ** 2 * text.split().count(w))", "the weight is squared"),
        ("lambda text, weights: max(text.split(), key=lambda w: abs(weights.get(w, 0)))", "compare the weights alone"),
        ("lambda text, weights: max(text.split(), key=lambda w: text.split().count(w) * weights[w])", "wrong for this one"),
        ("lambda text, weights: Counter(text.split()).most_common(1)[0][0]", "most frequent word"),
        ("lambda text, weights: max(abs(text.split().count(w) * weights.get(w, 0)) for w in text.split())", "asked is a text, and your function returned a number"),
    ],
    "choose_prompt": [
        ("lambda a, b: (lambda p: (p, b[p]))(max(a, key=lambda p: a[p] - b[p]))", "validation minus test"),
        ("lambda a, b: (max(b, key=b.get), max(b.values()))", "best on test"),
        ("lambda a, b: (max(a, key=a.get), max(a.values()))", "helped to choose it"),
        ("lambda a, b: (max(a, key=a.get), max(b.values()))", "belongs to another prompt"),
        ("lambda a, b: max(a, key=a.get)", "return two things"),
        ("lambda a, b: list(zip(a, b.values()))[np.argmax(list(a.values()))]", "wrong for this one"),
    ],
    "mask_padding": [
        ("lambda labels, pad: [[t or -100 for t in row] for row in labels]", "you mark every 0"),
        ("lambda labels, pad: [[t for t in row if t != pad] for row in labels]", "rectangle"),
        ("lambda labels, pad: np.where(np.array(labels) == pad, -1, labels)", "became -1"),
        ("lambda labels, pad: [row.remove(pad) for row in labels]", "one of 2 (None)"),
        ("lambda labels, pad: [row.__setitem__(-1, -100) for row in labels] and None", "changes what it was given and returns nothing"),
        ("lambda labels, pad: [-100 if row == pad else row for row in labels]", "still hold the pad id"),
    ],
    "positive_probability": [
        ("lambda x, words: torch.softmax(torch.tensor(x), 1)[:, words[1]]", "whole vocabulary"),
        ("lambda x, words: torch.softmax(torch.tensor(x)[:, words], 0)[:, 1]", "over the reviews"),
        ("lambda x, words: torch.softmax(torch.tensor(x)[:, words], 1)[:, 0]", "negative word"),
        ("lambda x, words: torch.sigmoid(torch.tensor(x)[:, words[1]])", "the positive word alone"),
        ("lambda x, words: x[:, words[1]] > x[:, words[0]]", "and your function returned one of"),
        ("lambda x, words: torch.softmax(x[:, words], 1)[:, 1]", "TypeError"),
    ],
    "pick_training": [
        ("lambda t: (lambda r: (r, max((c for c in t[r] if c['whole']), key=lambda c: c['accuracy'])['epoch'], max(c['epoch'] for c in t[r] if c['whole'])))(max(t, key=lambda r: max(c['accuracy'] for c in t[r])))", "accuracy of a torn checkpoint"),
        ("lambda t: (lambda r: (r, max(t[r], key=lambda c: c['accuracy'])['epoch'], t[r][-1]['epoch']))(max(t, key=lambda r: max(c['accuracy'] for c in t[r])))", "you count torn checkpoints"),
        ("lambda t: max((c['accuracy'], r, c['epoch'], c['epoch']) for r, f in t.items() for c in f if c['whole'])[1:]", "pay for an epoch twice"),
        ("lambda t: (1e-3, 2, 3)", "wrong for this one"),
        ("lambda t: (min(t), 1, 2)", "wrong for this one"),
        ("lambda t: max((c['accuracy'], r, c['epoch'], len(f)) for r, f in t.items() for c in f if c['whole'])[1:]", "whole or torn"),
        ("lambda t: min((c['loss'], r, c['epoch']) for r, f in t.items() for c in f if c['whole'])[1:]", "returned one of 2"),
    ],
    "bought": [
        ("lambda a: (a['trainer'] - a['from_scratch'], a['trainer'] - a['as_shipped'])", "hundredths"),
        ("lambda a: [100 * (a['trainer'] - a[k]) for k in ('as_shipped', 'from_scratch')]", "swapped"),
        ("lambda a: [100 * (a[k] - a['trainer']) for k in ('from_scratch', 'as_shipped')]", "sign is turned"),
        ("lambda a: [abs(100 * (a[k] - a['trainer'])) for k in ('from_scratch', 'as_shipped')]", "keep the sign"),
        ("lambda a: (30, 20)", "wrong for this one"),
        ("lambda a: {'pre': 100 * (a['trainer'] - a['from_scratch'])}", "returned a dict"),
    ],
    "accumulated_loss": [
        ("lambda m: sum(np.mean(b) for b in m)", "you add up averages"),
        ("lambda m: np.mean([np.mean(b) for b in m])", "you average averages"),
        ("lambda m: sum(map(sum, m)) / len(m)", "number of micro-batches"),
        ("lambda m: 1.6", "wrong for this one"),
        ("lambda m: np.mean(m)", "error in line 1"),
        ("lambda m: round(np.mean(sum(m, [])))", "wrong for this one"),
    ],
    "zero_bytes": [
        ("lambda n, stage, ranks: n * (16, 4 + 12 / ranks, 4 + 12 / ranks, 16 / ranks)[stage]", "1 and 2 come out alike"),
        ("lambda n, stage, ranks: sum(expected_bytes(n, stage, ranks).values())", "training in fp32"),
        ("lambda n, stage, ranks: 16 * n if stage == 0 else 16 * n / ranks", "you divide everything"),
        ("lambda n, stage, ranks: expected_bytes(n, stage, ranks, bf16=True)", "returned a dict"),
        ("lambda n, stage, ranks: n * (12, 4 + 8 / ranks, 2 + 10 / ranks, 12 / ranks)[stage]", "12 bytes per parameter"),
        ("lambda n, stage, ranks: 16 * n / (stage + 1)", "wrong for this one"),
    ],
    "reshard": [
        ("lambda s, n, r: (lambda v: [(v + [0] * (-n % r))[i * -(-n // r):(i + 1) * -(-n // r)] for i in range(r)])([x for p in s for x in p if x != 0])", "zeros among them or not"),
        ("lambda s, n, r: [sum(s, [])[:n][i:i + -(-n // r)] for i in range(0, n, -(-n // r))]", "wrong for this one"),
        ("lambda s, n, r: np.array_split(np.concatenate(s)[:n], r)", "not equally long"),
        ("lambda s, n, r: sum(s, [])[:n]", "one shard for each"),
        ("lambda s, n, r: [(sum(s, [])[:n] + [0] * r)[i::r][:-(-n // r)] for i in range(r)]", "wrong for this one"),
        ("lambda s, n, r: np.array(s)[:n].reshape(r, -1)", "ValueError"),
    ],
    "lowest_stage": [
        ("lambda n, r, m: 3 if 16 * n / r <= m else None", "take the lowest"),
        ("lambda n, r, m: next((s for s in range(4) if sum(expected_bytes(n, s, r, bf16=True).values()) < m), None)", "fits exactly"),
        ("lambda n, r, m: next((s for s, b in enumerate((16, 10, 9, 8)) if n * b <= m), None)", "returned None here"),
        ("lambda n, r, m: next(s for s in range(4) if sum(expected_bytes(n, s, r, bf16=True).values()) <= m)", "StopIteration"),
        ("lambda n, r, m: next((s for s in range(4) if sum(expected_bytes(n, s, r).values()) <= m), None)", "bf16=True"),
        ("lambda n, r, m: next((s for s in range(4) if sum(expected_bytes(n, s, r, bf16=True).values()) <= m), -1)", "asked is None"),
    ],
    "mcnemar": [
        ("lambda a, b: (lambda x, y: stats.binomtest(max(x, y), x + y, alternative='greater').pvalue if x + y else 1)(sum(p > q for p, q in zip(a, b)), sum(q > p for p, q in zip(a, b)))", "one tail"),
        ("lambda a, b: (lambda x, y: stats.chi2.sf((x - y) ** 2 / (x + y), 1) if x + y else 1)(sum(p > q for p, q in zip(a, b)), sum(q > p for p, q in zip(a, b)))", "chi-square approximation; with few"),
        ("lambda a, b: stats.binomtest(sum(p > q for p, q in zip(a, b)), len(a)).pvalue", "toss a coin for every review"),
        ("lambda a, b: stats.binomtest(sum(p > q for p, q in zip(a, b)), sum(p != q for p, q in zip(a, b))).pvalue", "ValueError"),
        ("lambda a, b: 0.109375", "wrong for this one"),
        ("lambda a, b: stats.ttest_rel(a, b).pvalue", "wrong for this one"),
        ("lambda a, b: np.random.random()", "another answer to the same input"),
    ],
    "calibration_error": [
        ("lambda c, r, e: sum(abs((c - r)[np.digitize(c, e) == i].sum()) for i in range(1, len(e))) / len(c)", "lower edge and not their upper"),
        ("lambda c, r, e: abs(c - r).mean()", "review by review"),
        ("lambda c, r, e: c.mean() - r.mean()", "cancel"),
        ("lambda c, r, e: sum(m.mean() * abs(c[m].mean() - r[m].mean()) for m in [(c > l) & (c <= h) for l, h in zip(e, e[1:])])", "came      nan"),
        ("lambda c, r, e: 100 * sum(abs((c - r)[np.digitize(c, e, right=True) == i].sum()) for i in range(1, len(e))) / len(c)", "not a percentage"),
        ("lambda c, r, e: np.mean([abs(c[m].mean() - r[m].mean()) for m in [(c > l) & (c <= h) for l, h in zip(e, e[1:])] if m.any()])", "must weigh more"),
    ],
    "negation_slice": [
        ("lambda text: any(w in ('not', 'no', 'never', 'without') or w.endswith('n\\'t') for w in text.lower().split())", "split at blanks"),
        ("lambda text: 'not' in text.lower()", "letters 'not' and for nothing else"),
        ("lambda text: any(w in text.lower() for w in ('not', 'no', 'n\\'t', 'never', 'without'))", "find 'not' in 'another'"),
        ("lambda text: bool(re.search(r'\\b(not|no|never|without)\\b', text, re.I))", "misses the short forms"),
        ("lambda text: bool(re.search(r'\\b(not|no|never|without)\\b|n\\'t', text))", "capital letters"),
        ("lambda text: bool(re.search(r'\\b(not|no|never|without)\\b|n.?t\\b', text, re.I))", "wrong for this one"),
        ("lambda text: 'True'", "finds a negation in every text"),
        ("lambda text: print(text)", "wrong for this one"),
    ],
    "stream_answers": [
        ("lambda texts, predict, size: [a for b in iter(lambda: list(islice(texts, size)), []) for a in predict(b)]", "a list holds the answers"),
        ("def f(texts, predict, size):\n while True: yield 'x'", "more answers come"),
        ("def f(texts, predict, size):\n while True: predict(['x'])", "was called 8 times for 7 reviews"),
        ("def f(texts, predict, size):\n while True: pass", "still running"),
        ("def f(texts, predict, size):\n for t in texts: yield from predict([t])", "full ones are many times as fast"),
        ("def f(texts, predict, size):\n yield from predict(list(texts))", "got a batch of 7"),
        ("def f(texts, predict, size):\n texts = list(texts)\n for i in range(0, len(texts), size): yield from predict(texts[i:i + size])", "7 reviews were read when answer 1 came"),
        ("def f(texts, predict, size):\n batch = []\n for t in texts:\n  batch.append(t)\n  if len(batch) == size:\n   yield from predict(batch); batch = []", "left over at the end"),
        ("def f(texts, predict, size):\n while True:\n  yield from predict(list(islice(texts, size)))", "empty batch"),
        ("def f(texts, predict, size):\n for batch in iter(lambda: list(islice(texts, size)), []): yield predict(batch)", "came as one list"),
    ],
}  # fmt: skip


def build(source):
    names = {"np": np, "pd": pd, "torch": torch, "re": re, "F": fingerprint}
    exec("import math\nfrom collections import Counter\nfrom fractions import Fraction\nfrom itertools import chain, islice\n"
         "from scipy import stats\nfrom finetuning.distributed.memory import expected_bytes\n"
         "w = lambda text: text.lower().replace(',', '').replace('.', '').split()\n", names)  # fmt: skip
    if source.startswith("lambda"):
        return eval(source, names)
    exec(source, names)
    return names["f"]


def said(name, answer):
    exercise._wrong.clear()
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        NAMED[name](answer)
    return shown.getvalue()


@pytest.mark.parametrize("name", NAMED)
def test_right_answers_of_any_style_are_taken(name):
    assert len(RIGHT[name]) >= 4
    for source in RIGHT[name]:
        answered = said(name, build(source))
        assert answered.startswith("Right. "), f"{source}\n{answered}"


@pytest.mark.parametrize("name", NAMED)
def test_wrong_answers_are_shown_where_they_go_wrong(name):
    assert len(WRONG[name]) >= 6
    for source, expected in WRONG[name]:
        answered = said(name, build(source))
        assert answered.startswith("Not yet: ") and expected in answered, f"{source}\n{answered}"
        assert "\n  for       " in answered
        assert ("\n  expected  " in answered) == ("\n  came      " in answered)


@pytest.mark.parametrize("name", [name for name in NAMED if name != "stream_answers"])
def test_every_mistake_that_is_known_is_told_by_its_own_sentence(name):
    solution = NAMED[name].__wrapped__
    names = list(inspect.signature(solution).parameters)
    assert said(name, solution).startswith("Right. ")
    mistakes = exercise.texts(LESSON[name])[name]["mistakes"]
    assert len(mistakes) >= 8 and len({sentence for _, sentence in mistakes}) == len(mistakes)
    for formula, sentence in mistakes:

        def wrong(*case, formula=formula):
            wanted = exercise.plain(solution(*case))
            return eval(
                formula, {"np": np, **solution.__globals__, **dict(zip(names, case, strict=True)), "wanted": wanted}
            )

        assert said(name, wrong).startswith(f"Not yet: {sentence}\n"), formula


@pytest.mark.parametrize("name", [name for name in NAMED if name not in ("stream_answers", "star_words")])
def test_nobody_is_accused_of_what_he_did_not_do(name):
    """An answer that is right but for one input makes no known mistake, so none is named."""
    solution, calls = NAMED[name].__wrapped__, []

    def almost(*case):
        calls.append(case)
        return solution(*case) if len(calls) != 5 else -7

    answered = said(name, almost)
    assert not any(sentence in answered for _, sentence in exercise.texts(LESSON[name])[name]["mistakes"])


@pytest.mark.parametrize("name", NAMED)
def test_answers_that_never_end_or_never_come_do_not_hang_the_kernel(name, monkeypatch):
    def endless(*case):
        while True:
            try:  # noqa: SIM105
                sum(range(100))
            except:  # noqa: E722
                pass

    def generator(*case):
        while True:
            yield 1

    async def promised(*case):
        return 1

    def deep(*case):
        return deep(*case)

    monkeypatch.setattr(exercise, "SECONDS", 0.5)
    assert "still running after" in said(name, endless)
    monkeypatch.undo()
    for answer, expected in (
        (generator, "no end|what ends its loop|finds a negation in every"),
        (promised, "async def"),
        (deep, "RecursionError"),
        (lambda *case: exit(), "SystemExit"),
    ):
        answered = said(name, answer)
        assert answered.startswith("Not yet: ") and re.search(expected, answered), answered


def test_an_error_is_told_as_one_of_the_readers_function_with_its_line(tmp_path):
    path = tmp_path / "cell.py"
    path.write_text("def count(train, test):\n    held = set(test)\n    return helper(train, held)\n\n\n"
                    "def helper(train, held):\n    return sum(undefined in held for text in train)\n")  # fmt: skip
    names = {}
    exec(compile(path.read_text(), path, "exec"), names)
    answered = said("leaks", names["count"])
    assert "your function stopped with an error in line 7 of its cell (return sum(undefined in held" in answered
    assert "NameError: name 'undefined' is not defined" in answered and "cannot be read" not in answered
    assert "cannot be called with (train, test)" in said("leaks", lambda train: 1)


def test_what_a_function_does_instead_of_returning_is_said():
    printed = said("leaks", lambda train, test: print(2))
    assert "your function prints and returns nothing here" in printed
    kept = []
    assert "another answer to the same input" in said("leaks", lambda train, test: kept.append(1) or len(kept))
    assert "hand over the function itself" in said("leaks", 3)
