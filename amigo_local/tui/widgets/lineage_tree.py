"""LineageTree: what a model was made from, by which recipe, and what was made from it; Enter goes to an ancestor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static, Tree
from textual.widgets.tree import TreeNode

from amigo_local.domain.events import Ancestor, LineageShown
from amigo_local.presentation.lineage import about
from amigo_local.presentation.visible_text import visible

_JUMP = "→ "
_NONE = "This home has made nothing of it, and knows nothing of how it was made."


class LineageTree(Vertical):
    DEFAULT_CSS = """
    LineageTree {
        Tree { height: 1fr; padding: 0 1; background: $background; scrollbar-size: 1 1; }
        Tree:focus { background-tint: $background 0%; }
        .about { height: auto; max-height: 4; padding: 0 1; color: $text-muted; background: $boost; }
    }
    """

    @dataclass
    class Jumped(Message):
        """Enter on one that is listed."""

        ref: str

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._listed: frozenset[str] = frozenset()

    def compose(self) -> ComposeResult:
        tree = Tree[Ancestor]("")
        tree.show_root, tree.auto_expand, tree.guide_depth = False, False, 3
        yield tree
        yield Static(classes="about", markup=False)

    @property
    def branches(self) -> Tree[Ancestor]:
        return self.query_one(Tree)

    def show(self, lineage: LineageShown | None, listed: Iterable[str]) -> None:
        """listed: the refs that one can go to."""
        self._listed = frozenset(listed)
        tree = self.branches
        tree.root.remove_children()
        self.query_one(".about", Static).update("" if lineage else _NONE)
        if lineage:
            self._add(tree.root, lineage.origin)
            if lineage.made_from_it:
                below = tree.root.add(Text(f"made from it ({len(lineage.made_from_it)})", "bold"), expand=True)
                for child in lineage.made_from_it:
                    self._add(below, child)
            tree.root.expand()
            tree.cursor_line = 0

    def _add(self, above: TreeNode[Ancestor], thing: Ancestor) -> None:
        if not thing.sources:
            above.add_leaf(self._label(thing), thing)
            return
        node = above.add(self._label(thing), thing, expand=True)
        for source in thing.sources:
            self._add(node, source)

    def _label(self, thing: Ancestor) -> Text:
        """Short: the whole of the one under the cursor stands below the tree."""
        known_by = ", ".join(thing.tags) or thing.name or thing.digest.removeprefix("sha256:")[:12]
        label = Text(no_wrap=True)
        label.append(_JUMP if self.ref_of(thing) else "")
        label.append(f"{thing.stage or thing.role} ", "bold")
        label.append(visible(known_by))
        if thing.recipe:
            label.append(visible(f"  by {thing.recipe}"), "dim")
        if thing.is_above:
            label.append("  (see above)", "dim")
        return label

    def ref_of(self, thing: Ancestor) -> str | None:
        """By which it is listed; None when it isn't."""
        own = [thing.name] if thing.stage == "register" else []
        refs = [f"ollama:{tag}" for tag in (*own, *thing.tags)] + [thing.path or "", thing.name]
        return next((ref for ref in refs if ref in self._listed), None)

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[Ancestor]) -> None:
        event.stop()
        thing = event.node.data
        text = visible(about(thing)) if thing else ""
        if thing and self.ref_of(thing):
            text = f"{_JUMP}enter goes there: {text}"
        self.query_one(".about", Static).update(text)

    def on_tree_node_selected(self, event: Tree.NodeSelected[Ancestor]) -> None:
        event.stop()
        if event.node.data is None:
            event.node.toggle()
        elif ref := self.ref_of(event.node.data):
            self.post_message(self.Jumped(ref))
