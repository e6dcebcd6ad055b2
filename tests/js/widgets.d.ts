// What the JavaScript of the widgets is given: one interface per widget, with its synced traits as they arrive in the
// browser. tests/unit/test_javascript.py holds the names against the Python classes.

type Cell = [number, number]; // row, column; for heads: layer, head
type Part = [number, number, number, number]; // row, row stop, column, column stop
type Alternative = [text: string, probability: number];
type Flip = (row: number) => number; // where a row is drawn, from the top
type Place = Pick<DOMRect, "left" | "top" | "bottom">;

/** An array as it travels. */
interface Wire {
  shape: number[];
  dtype: "uint8" | "int32" | "float16" | "float32";
  data: DataView<ArrayBuffer>;
  triangle?: boolean;
}
/** An array as it is read; float16 as its bits. */
interface Numbers {
  shape: number[];
  dtype: Wire["dtype"];
  data: Uint8Array | Int32Array | Uint16Array | Float32Array;
}
/** Numbers of a part of a grid that begins at a row and a column; each stands for step x step cells. */
type Source = Numbers & { row: number; column: number; step: number };

interface Model<Traits> {
  get<Name extends keyof Traits>(name: Name): Traits[Name];
  set<Name extends keyof Traits>(name: Name, value: Traits[Name]): void;
  save_changes(): void;
  send(message: unknown): void;
  on(names: string, act: (...news: any[]) => void): void;
  off(names: string, act: (...news: any[]) => void): void;
}
interface Context<Traits> {
  model: Model<Traits>;
  el: HTMLElement;
}

interface BlockTraits {
  scale: string;
  stops: Record<string, string[]>;
}
interface CellTraits {
  selection: Cell | null;
  hovered: Cell | null;
}
interface Branch {
  name: string;
  parent: number | null;
  text?: string;
  tokens: number;
  at: number;
  taken: string;
  instead?: string;
  bits?: number | null;
  finish?: string;
}
interface BranchTreeTraits extends BlockTraits {
  branches: Branch[];
  title: string;
  actions: string[];
  selection: number | null;
  compared: number | null;
}
interface CheckListTraits extends BlockTraits {
  checks: [name: string, ok: boolean | null, says: string][];
  title: string;
}
interface CircuitViewTraits extends BlockTraits {
  nodes: [name: string, label: string, across: number, row: number][];
  rows: string[];
  lines: Wire | null;
  names: [sender: string, receiver: string][];
  strengths: Wire | null;
  unit: string;
  title: string;
  caption: string;
  selection: number | null;
  hovered: number | null;
  node: string | null;
}
interface CurveTraits extends BlockTraits {
  values: Wire | null;
  labels: string[];
  notes: string[];
  ticks: [value: number, label: string][];
  axis: string;
  title: string;
  unit: string;
  low: number;
  high: number;
  height: number;
  selection: number | null;
}
interface HeadGridTraits extends BlockTraits, CellTraits {
  thumbnails: Wire | null;
  title: string;
  scores: Wire | null;
  score: string;
  order: Cell[] | null;
  faint: Cell[];
  chosen: Cell[];
  side: number;
  max_height: number;
}
interface HeatmapTraits extends BlockTraits, CellTraits {
  values: Wire | null;
  extent: Cell | null;
  window: Part | null;
  detail: Wire | null;
  detail_at: Part | null;
  triangular: boolean;
  zoomable: boolean;
  row_labels: string[];
  column_labels: string[];
  column_marks: number[];
  row_axis: string;
  column_axis: string;
  title: string;
  unit: string;
  description: string;
  low: number;
  high: number;
  centre: number | null;
  origin: "top" | "bottom";
  square: boolean;
  max_height: number;
  texts: string[];
  notes: string[];
  ticks: [value: number, label: string][];
  estimated: Wire | null;
  cone: Wire | null;
  gestures: boolean;
  chosen: Cell[];
  arrow: [Cell, Cell] | null;
}
interface PairStripTraits extends BlockTraits {
  columns: [above: string | null, below: string | null][];
  marks: Record<string, number[]>;
  names: [string, string];
  labels: string[];
  selection: number | null;
  hovered: number | null;
}
interface PredictionTraits extends BlockTraits {
  question: string;
  options: string[];
  between: [low: number, high: number] | null;
  unit: string;
  guess: string;
  truth: string;
  says: string;
}
interface PromptBoxTraits extends BlockTraits {
  value: string;
  label: string;
  placeholder: string;
  rows: number;
  delay: number;
  edits: number;
}
interface StatusLineTraits extends BlockTraits {
  text: string;
  kind: "info" | "error";
  share: number | null;
}
interface TokenBarsTraits extends BlockTraits {
  columns: [name: string, rows: Alternative[]][];
  marked: string[];
  title: string;
  note: string;
}
interface Fold {
  start: number;
  stop?: number | null;
  label?: string;
}
interface TokenStripTraits extends BlockTraits {
  tokens: string[];
  values: Wire | null;
  marks: Record<string, number[]>;
  words: string[];
  top: Wire | null;
  chances: Wire | null;
  facts: Wire | null;
  fact_names: string[];
  notes: Record<number, string>;
  folds: Fold[];
  opened: number[];
  widths: number[];
  title: string;
  unit: string;
  legend: boolean;
  low: number;
  high: number;
  centre: number | null;
  choosable: boolean;
  selection: number | null;
  hovered: number | null;
  pointed: number[];
}

/** Give a page or a shadow tree the block's css, once; it stands before theme.js in every block. */
declare function dressRoot(root: Document | ShadowRoot): void;

/** A part of an exported page: a box of parts, a block, a control, a text or a quoted text. */
interface PagePart {
  kind: "box" | "block" | "control" | "text" | "quote";
  block?: string;
  children?: string[];
  row?: boolean;
  class: string[];
  style: { flex?: string; width?: string; max_width?: string };
}
/** An exported page: its parts and their models, by id. */
interface ExportedPage {
  parts: Record<string, PagePart>;
  models: Record<string, Held>;
  blocks: Record<string, { render(context: { model: Held; el: HTMLElement }): unknown }>;
  unpack(chunk: number): any;
  waiting: (() => void)[];
}

type Colours = Record<"page" | "ink" | "muted" | "line" | "accent" | "sans" | "mono", string>;

/** Where everything of a heatmap lies, in CSS pixels; rows and columns are those that are looked at. */
interface HeatmapPlan {
  rows: number;
  columns: number;
  firstRow: number;
  firstColumn: number;
  left: number;
  top: number;
  right: number;
  bottom: number;
  cellWidth: number;
  cellHeight: number;
  width: number;
  height: number;
  turned: boolean;
  all: { width: number; height: number };
}
/** What the parts of a heatmap draw with. */
interface Drawing {
  context: CanvasRenderingContext2D;
  model: Model<HeatmapTraits>;
  plan: HeatmapPlan;
  flip: Flip;
  colours: Colours;
}
/** Where the heads lie, by "layer.head". */
interface HeadPlan {
  layers: number;
  heads: number;
  cell: number;
  places: Map<string, { x: number; y: number }>;
  wide: number;
  high: number;
  left?: number; // as a grid
  columns?: number; // in an order
  order?: Cell[];
}
interface GestureState {
  from: Cell | null;
  to: Cell | null;
  marked: Cell | null;
}

/** What a block of cells gives to `cellGrid`. */
interface Geometry {
  ready(): boolean;
  /** The cell under a point of the stage. */
  at(x: number, y: number): Cell | null;
  /** Where a cell lies. */
  box(cell: Cell): { x: number; y: number; width: number; height: number };
  clamp(cell: Cell): Cell;
  /** What each arrow key adds. */
  steps(): Record<string, Cell>;
  /** Where the keyboard begins. */
  first(): Cell;
  /** What is read out, and what is shown. */
  say(cell: Cell): { spoken: string; content: Node[] };
  outline(context: CanvasRenderingContext2D, cell: Cell, colour: string, width: number): void;
  /** Told of a click or Enter before the cell becomes the selection; true where it took care of it. */
  pick?(cell: Cell, event: MouseEvent | KeyboardEvent): boolean;
  /** Keys of its own: a cell to go to, or true when done. */
  key?(event: KeyboardEvent, cursor: Cell): Cell | boolean | undefined;
  /** Told where the keyboard goes. */
  follow?(cell: Cell): void;
  /** Was a click the end of a drag? */
  dragged?(): boolean;
  /** Draws beneath the outlines. */
  under?(context: CanvasRenderingContext2D): void;
}

