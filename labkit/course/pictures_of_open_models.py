"""The figures of notebook 08, so that its cells stay short: what is open, who is made from whom, what fits where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.models.card import card
from labkit.models.per_token import active_parameters
from labkit.text.regions import widths_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from labkit.language_model import LanguageModel
    from labkit.text.tokens import Token

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#bbbbbb"
GPUS = (8, 16, 24, 80)  # gigabytes
STARTED_FROM = {
    "DeepSeek-R1-Distill-Qwen-1.5B": "Qwen2.5-1.5B",
    "DeepSeek-R1-Distill-Qwen-7B": "Qwen2.5-7B",
    "DeepSeek-R1-Distill-Qwen-14B": "Qwen2.5-14B",
    "DeepSeek-R1-Distill-Qwen-32B": "Qwen2.5-32B",
    "DeepSeek-R1-Distill-Llama-8B": "Llama-3.1-8B",
    "DeepSeek-R1-Distill-Llama-70B": "Llama-3.3-70B-Instruct",
}
"""From the README of DeepSeek-R1. The two smallest began as Qwen2.5-Math, made from these, which the catalog lacks."""
NAMED = {
    "pythia-12b": ("Pythia", 13),
    "Llama-2-70b-hf": ("Llama 2", 13),
    "Meta-Llama-3-8B": ("Llama 3", 13),
    "deepseek-llm-7b-base": ("DeepSeek LLM", 13),
    "DeepSeek-V2": ("DeepSeek V2", -13),
    "DeepSeek-V3": ("V3", 13),
    "DeepSeek-R1": ("R1", 13),
    "DeepSeek-V3.2-Exp": ("V3.2", 13),
    "SmolLM2-135M-Instruct": ("SmolLM2, the model of this course", -13),
}
"""What is written at a model, and how far above it, in pixels."""


def openness_figure(catalog: pd.DataFrame) -> go.Figure:
    """Which parts are open, by family: the table in colours."""
    import plotly.express as px

    parts = catalog.groupby("family", sort=False)[["weights", "code", "data", "recipe"]].first()
    amounts = parts.apply(lambda column: column.map({"open": 2, "yes": 2, "part": 1, "no": 0}))
    words = {"open": "open", "yes": "open", "part": "in part", "no": "not open"}
    texts = parts.apply(lambda column: column.map(words))
    figure = px.imshow(
        amounts, color_continuous_scale=["#f0f0f0", "#a6cbe3", "#2c7fb8"], aspect="auto", width=560, height=520,
        title="What is published besides the weights, by family",
    )  # fmt: skip
    figure.update_traces(text=texts, texttemplate="%{text}", hovertemplate="%{y}, %{x}: %{text}<extra></extra>")
    return figure.update_layout(
        coloraxis_showscale=False, xaxis={"title": "", "side": "top"}, yaxis_title="", margin={"t": 90, "b": 20}
    )


def relatives_figure(catalog: pd.DataFrame) -> go.Figure:
    """Models by the month of their paper on arXiv, and from what R1's distilled models were made."""
    import pandas as pd
    import plotly.express as px

    month = catalog.paper.str.extract(r"arxiv\.org/abs/(\d{4})\.")[0]  # 2307.09288 is of July 2023
    makers = catalog.family.where(catalog.family.isin(["Llama", "DeepSeek", "Qwen 2.5"]), "others")
    papers = catalog.assign(
        month=pd.to_datetime("20" + month, format="%Y%m"), name=catalog.index.str.split("/").str[1], makers=makers
    ).dropna(subset="month")
    figure = px.scatter(
        papers, x="month", y="parameters (B)", color="makers", hover_name="name", hover_data=["licence", "family"],
        log_y=True, width=740, height=560, title="Open models by the month of their paper; arrows: distilled from R1",
        color_discrete_map={"Llama": BLUE, "DeepSeek": ORANGE, "Qwen 2.5": GREEN, "others": GREY},
        category_orders={"makers": ["others", "Qwen 2.5", "Llama", "DeepSeek"]},
    )  # fmt: skip
    at = papers.set_index("name")
    places = {name: (at.month[name], float(np.log10(at["parameters (B)"][name]))) for name in at.index}
    for child, parent in STARTED_FROM.items():
        (x, y), (ax, ay) = places[child], places[parent]
        figure.add_annotation(x=x, y=y, ax=ax, ay=ay, axref="x", ayref="y", arrowhead=2, arrowwidth=1.5, opacity=0.7)
    for name, (label, above) in NAMED.items():
        x, y = places[name]
        figure.add_annotation(x=x, y=y, text=label, showarrow=False, yshift=above)
    return figure.update_layout(
        legend={"title": "", "orientation": "h", "y": 1.06},
        xaxis_title="month of the paper",
        yaxis={"title": "parameters (billions)", "dtick": 1},
    )


def sizes_of(names: Sequence[str]) -> pd.DataFrame:
    """By name: parameters, all and active on a token, in billions, and gigabytes of weights in 4, 8 and 16 bits."""
    import pandas as pd

    models = {name: card(name).model for name in names}
    rows = {
        name: {"total": model.parameters, "active": active_parameters(model.config)}
        | {f"{bits} bits": size / 1e9 for bits, size in model.bytes.items()}
        for name, model in models.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def sizes_figure(sizes: pd.DataFrame, named: Sequence[str]) -> go.Figure:
    """Memory for the weights over the parameters that work on a token, with the memory of GPUs."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for size in GPUS:
        figure.add_hline(y=size, line={"dash": "dot", "color": ORANGE, "width": 1})
        figure.add_annotation(
            x=0, xref="paper", y=float(np.log10(size)), text=f"{size} GB GPU", showarrow=False, xanchor="left",
            yshift=8, font={"size": 11, "color": ORANGE},
        )  # fmt: skip
    for _, row in sizes.iterrows():
        figure.add_scatter(
            x=[row["active"]] * 2, y=[row["4 bits"], row["16 bits"]], mode="lines", line={"color": GREY},
            showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    shapes = [
        "diamond" if active < 0.9 * total else "circle" for active, total in sizes[["active", "total"]].to_numpy()
    ]
    for bits, colour in ((16, "#9ecae1"), (8, "#4292c6"), (4, "#08306b")):
        figure.add_scatter(
            x=sizes["active"], y=sizes[f"{bits} bits"], mode="markers", name=f"{bits} bits", customdata=sizes.index,
            marker={"color": colour, "size": 10, "symbol": shapes},
            hovertemplate="%{customdata}<br>%{x:.3g} billion active<br>%{y:.3g} GB",
        )  # fmt: skip
    for name in named:
        x, y = np.log10(sizes.loc[name, ["active", "16 bits"]].to_numpy(float))
        short = name.removesuffix("-hf").removesuffix("-v0.1").removesuffix("-Instruct")
        figure.add_annotation(x=float(x), y=float(y), text=short, showarrow=False, yshift=14, font={"size": 11})
    return figure.update_layout(
        title="Memory for the weights; circles: all work on every token, diamonds: mixtures of experts",
        xaxis={"title": "parameters that work on one token (billions)", "type": "log", "dtick": 1},
        yaxis={"title": "memory for the weights (GB)", "type": "log", "dtick": 1},
        legend={"orientation": "h", "y": 1.06},
        width=740,
        height=620,
    )


def cache_figure(per_token: pd.Series) -> go.Figure:
    """Bars: kilobytes of keys and values per token, by model; those with latent attention in another colour."""
    import plotly.graph_objects as go

    colours = [ORANGE if card(str(name)).model.config.get("kv_lora_rank") else BLUE for name in per_token.index]
    bars = go.Bar(
        x=per_token / 1000, y=per_token.index, orientation="h", marker_color=colours, texttemplate="%{x:.0f}",
        hovertemplate="%{y}<br>%{x:.1f} kB per token<extra></extra>",
    )  # fmt: skip
    return go.Figure(bars).update_layout(
        title="Keys and values kept for one token; orange: latent attention",
        xaxis_title="kB per token (16 bits)",
        yaxis={"autorange": "reversed"},
        width=740,
        height=380,
    )


def shaded(lm: LanguageModel, text: str, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Token], np.ndarray]:
    """The tokens of a chat that was written as text, and 1 for those of the messages, float32 (seq,); else NaN.

    Raises:
        ValueError: a message is not in the text.
    """
    tokens = lm.tokens(text)
    spans = widths_of(lm, text, [token.id for token in tokens])
    if spans is None:
        raise ValueError("this tokenizer does not say where its tokens stand in a text; use a fast one")
    begins, ends = np.array(spans).T
    said = np.zeros(len(tokens), bool)
    start = 0
    for message in messages:
        start = text.index(message["content"], start)
        stop = start + len(message["content"])
        said |= (begins < stop) & (ends > start)
        start = stop
    return tokens, np.where(said, 1.0, np.nan).astype(np.float32)
