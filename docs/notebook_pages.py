"""A hook of `make docs`: the notebooks of docs/tutorials become pages, with the outputs they were kept with."""

import base64
import json
import re
from pathlib import Path
from typing import Any


def on_files(files: Any, *, config: Any) -> Any:
    """Adds a page beside each notebook, and the pictures that it shows."""
    from mkdocs.structure.files import File

    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = Path(notebook.src_uri)
        text, pictures = page(json.loads(notebook.content_string), path.name)
        files.append(File.generated(config, path.with_suffix(".md").as_posix(), content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, (path.parent / name).as_posix(), content=content))
    return files


def page(notebook: dict, name: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # Tutorials name one another as files; here they are pages.
            parts.append(re.sub(r"\((\w+)\.ipynb\)", r"(\1.md)", source))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append("```text\n" + "".join(output["text"]).rstrip() + "\n```")
            picture = output.get("data", {}).get("image/png")
            if picture:
                file = f"{Path(name).stem}_{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode("".join(picture))
                parts.append(f"![The plot of the code above]({file})")
    title, _, rest = parts[0].partition("\n")
    parts[0] = f"{title}\n\n[Download this page as a notebook]({name})\n{rest}"
    return "\n\n".join(parts) + "\n", pictures
