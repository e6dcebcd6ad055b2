"""CircuitView: a circuit as a picture, layer by layer, with its edges as a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t

from labkit.circuits.graph import is_mlp, layer_of
from labkit.widgets.base.block import Array, Block, module
from labkit.widgets.base.colour_scales import colour
from labkit.widgets.base.picture import image, xml
from labkit.widgets.base.snapshot import card, note

if TYPE_CHECKING:
    from labkit.circuits.circuit import Circuit

MOST = 1500  # edges that are drawn; the strongest of more
_WIDE, _ROW, _TALL = 640, 26, 17  # of the saved picture: its width, from layer to layer, and a node's height


class CircuitView(Block):
    """The parts of a circuit by layer, the text going in at the bottom, and its edges: blue ones toward the answer,
    orange ones against it, wider if stronger. Beside it all edges are in a list, for keyboards.

    Args:
        circuit: from `EdgeScores.circuit`.

    Traits:
        selection, hovered: the number of an edge in `circuit.edges`, or None.
        node: the part whose edges alone are shown, such as `z.23.3`, or None.
    """

    _esm = module("circuit_view")

    nodes: t.List[Any] = t.List(help="name, label, place across (0 to 1), row from the bottom").tag(sync=True)
    rows = t.List(t.Unicode(), help="what stands at the left of each row").tag(sync=True)
    lines = Array(2).tag(sync=True)  # (line, 3): edge, from node, to node; shared keys lead to several heads
    names = t.List(t.List(t.Unicode()), help="sender, receiver of each edge").tag(sync=True)
    strengths = Array(1).tag(sync=True)
    unit = t.Unicode().tag(sync=True)
    title = t.Unicode().tag(sync=True)
    caption = t.Unicode().tag(sync=True)
    selection = t.Int(None, allow_none=True).tag(sync=True)
    hovered = t.Int(None, allow_none=True).tag(sync=True)
    node = t.Unicode(None, allow_none=True).tag(sync=True)

    def __init__(self, circuit: Circuit, **traits: Any) -> None:
        self.circuit = circuit
        edges = circuit.edges.head(MOST)
        nodes, rows = _placed(circuit)
        number = {node[0]: n for n, node in enumerate(nodes)}
        lines = [
            (n, number[edge.sender], number[part])
            for n, edge in enumerate(edges.itertuples())
            for part in circuit.wiring.leads_to(str(edge.receiver))
            if part in number
        ]
        more = f", the {MOST} strongest of them drawn" if circuit.n_edges > MOST else ""
        answer, foil = (circuit.scores.recipe[name] for name in ("answer", "foil"))
        what = f"{answer!r}" + (f" over {foil!r}" if foil else "") if answer else circuit.scores.recipe["metric"]
        super().__init__(
            nodes=nodes,
            rows=rows,
            lines=np.array(lines, np.float32).reshape(-1, 3),
            names=edges[["sender", "receiver"]].to_numpy().tolist(),
            strengths=edges["score"].to_numpy(np.float32),
            unit=circuit.scores.recipe.get("unit", ""),
            scale="effect",
            **{"title": f"A circuit for {what}", "caption": repr(circuit)[8:-1] + more} | traits,
        )

    @t.validate("selection", "hovered")
    def _an_edge(self, proposal: Any) -> Any:
        value = proposal["value"]
        if value is not None and not 0 <= value < len(self.names):
            raise t.TraitError(f"edges go from 0 to {len(self.names) - 1}; got {value}")
        return value

    @t.validate("node")
    def _a_node(self, proposal: Any) -> Any:
        value = proposal["value"]
        if value is not None and value not in [node[0] for node in self.nodes]:
            raise t.TraitError(f"{value!r} is not part of this circuit; circuit.nodes lists them")
        return value

    def snapshot(self) -> str:
        return card(self.picture(), note(self.caption), title=self.title)

    def picture(self) -> str:
        """The circuit as an image without a frame."""
        high = _ROW * len(self.rows) + 6
        at = [(56 + x * (_WIDE - 110), high - 16 - _ROW * row) for _, _, x, row in self.nodes]
        most = float(np.abs(self.strengths).max(initial=1e-9))
        out = []
        for edge, sender, receiver in self.lines[::-1].astype(int):  # the strongest last, on top
            score = float(self.strengths[edge])
            share = (abs(score) / most) ** 0.5
            rgb = colour("effect", 0.5 + (0.2 + 0.2 * share) * np.sign(score))
            out.append(
                f'<path d="{_curve(at[sender], at[receiver])}" fill="none" stroke="rgb{rgb}" '
                f'stroke-width="{0.6 + 4.4 * share:.1f}" stroke-opacity="{0.35 + 0.6 * share:.2f}"/>'
            )
        for n, row in enumerate(self.rows):
            out.append(f'<text x="4" y="{high - 12 - _ROW * n}" class="q">{xml(row)}</text>')
        for (_, label, _, _), (x, y) in zip(self.nodes, at, strict=True):
            wide = 12 + 6.2 * len(label)
            out.append(
                f'<rect x="{x - wide / 2:.1f}" y="{y - _TALL / 2:.1f}" width="{wide:.1f}" height="{_TALL}" rx="5" '
                f'fill="#ffffff" stroke="#8a949e"/>'
                f'<text x="{x:.1f}" y="{y + 4:.1f}" class="c">{xml(label)}</text>'
            )
        strongest = "; ".join(
            f"{edge.sender} to {edge.receiver} {edge.score:+.2f}" for edge in self.circuit.edges.head(5).itertuples()
        )
        return image("".join(out), _WIDE, high, f"{self.title or 'Circuit'}: {self.caption}; strongest: {strongest}")

    def provenance(self) -> dict[str, Any]:
        return self.circuit.scores.recipe

    def code(self) -> str:
        """The Python that makes the same circuit and shows it."""
        return f"{self.circuit.code()}lk.CircuitView(circuit)\n"

    def __repr__(self) -> str:
        return f"CircuitView({self.caption})"


def _placed(circuit: Circuit) -> tuple[list[list[Any]], list[str]]:
    """Nodes as (name, label, across, row), and the label of each row: only layers with a part in the circuit.

    Heads of one number are above each other; MLPs have a column of their own.
    """
    names = circuit.nodes
    layers = sorted({layer_of(name) for name in names if "." in name})
    columns = sorted({int(name.split(".")[2]) for name in names if name.startswith("z")})
    nodes: list[list[Any]] = []
    for name in names:
        if name in ("embed", "logits"):
            nodes.append([name, name, 0.5, 0 if name == "embed" else len(layers) + 1])
            continue
        row = 1 + layers.index(layer_of(name))
        if is_mlp(name):
            nodes.append([name, f"MLP {layer_of(name)}", 1.0, row])
        else:
            head = int(name.split(".")[2])
            across = 0.84 * (columns.index(head) + 0.5) / len(columns)
            nodes.append([name, f"{layer_of(name)}.{head}", round(across, 4), row])
    return nodes, ["", *(f"layer {n}" for n in layers), ""]


def _curve(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the top of one node to the foot of another; around what lies straight between. As in circuit_view.js."""
    (x, y), (to_x, to_y) = start, end
    if abs(y - to_y) < 1:  # a head to the MLP of its layer
        middle = (x + to_x) / 2
        return f"M{x:.1f} {y:.1f}C{middle:.1f} {y - 12:.1f} {middle:.1f} {y - 12:.1f} {to_x:.1f} {to_y:.1f}"
    y, to_y = y - _TALL / 2, to_y + _TALL / 2
    far = y - to_y > _ROW  # with others in between, whose labels would hide it
    bow = (min(66.0, 34 + 0.14 * (y - to_y)) if far else 8.0) if abs(x - to_x) < 2 else 0.0
    lift = max(6.0, 0.42 * (y - to_y))
    return f"M{x:.1f} {y:.1f}C{x + bow:.1f} {y - lift:.1f} {to_x + bow:.1f} {to_y + lift:.1f} {to_x:.1f} {to_y:.1f}"
