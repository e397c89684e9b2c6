"""What was found, in the terminal, as one self-contained HTML page, and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dh_keras.config.schema import Config
from dh_keras.data.formats.findings import Finding
from dh_keras.errors import visible
from dh_keras.files import write_text
from dh_keras.reports.data_doctor.box_checks import COVERAGE_IOUS
from dh_keras.reports.data_doctor.examined import Diagnosis, Examined, class_names_of
from dh_keras.reports.data_doctor.kinds import KINDS, SEVERITIES, worst_first
from dh_keras.reports.data_doctor.overview import overview
from dh_keras.reports.data_doctor.sheets import contact_sheet, draw_picture

SHOWN_PER_KIND = 12
_EXAMPLE_WIDTH = 70
_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def summary_rows(findings: Sequence[Finding]) -> list[dict]:
    """Return severity, kind, title, count, example and advice of each kind that was found, the worst first."""
    return [
        {
            "severity": KINDS[kind].severity,
            "kind": kind,
            "title": KINDS[kind].title,
            "count": len(members),
            "example": members[0].message,
            "advice": KINDS[kind].advice,
        }
        for kind, members in worst_first(findings).items()
    ]


def format_summary(findings: Sequence[Finding]) -> str:
    """Return the table for the terminal: two lines for each kind, what was found and what to do."""
    rows = summary_rows(findings)
    if not rows:
        return "nothing to complain about"
    width = max(len(row["title"]) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row['severity']:<8}{row['count']:>6}  {row['title']:<{width}}  {row['advice']}")
        lines.append(f"{'':<14}  for example {_shorten(row['example'], _EXAMPLE_WIDTH + width)}")
    return "\n".join(lines)


def format_coverage(coverage: dict[str, dict]) -> str:
    """Return the table of anchor coverage for the terminal, a line for each split and size."""
    lines = [f"{'':<14}{'boxes':>8}" + "".join(f"{f'IoU >= {iou}':>12}" for iou in COVERAGE_IOUS)]
    for split, sizes in coverage.items():
        for size, row in sizes.items():
            shares = ["n/a" if row[str(iou)] is None else f"{row[str(iou)]:.1%}" for iou in COVERAGE_IOUS]
            lines.append(f"{split:<6}{size:<8}{row['boxes']:>8}" + "".join(f"{share:>12}" for share in shares))
    return "\n".join(lines)


def describe_splits(splits: Sequence[Examined]) -> list[dict]:
    """Return files, counts and boxes of each class, for the reports."""
    return [
        {
            "split": examined.split.name,
            "annotations": str(examined.split.annotations_path),
            "images": str(examined.split.images_dir),
            "image_count": len(examined.split.images),
            "usable_images": int(examined.good.sum()),
            "box_count": len(examined.split.xywh),
            "usable_boxes": int(examined.usable.sum()),
            "classes": examined.class_counts(),
        }
        for examined in splits
    ]


def write_json(path: Path, diagnosis: Diagnosis) -> None:
    """Write everything that was found, and the numbers, as JSON."""
    found = [{"severity": KINDS[one.kind].severity, **dataclasses.asdict(one)} for one in diagnosis.findings]
    content = {
        "splits": describe_splits(diagnosis.splits),
        "anchor_coverage": diagnosis.coverage,
        "summary": summary_rows(diagnosis.findings),
        "findings": found,
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, default=str))


def write_html(path: Path, diagnosis: Diagnosis, *, config: Config, augmented: Sequence[tuple[str, str]]) -> None:
    """Write the page: every picture is inside it, so that it can be sent and kept as one file."""
    splits, findings = diagnosis.splits, diagnosis.findings
    class_names = class_names_of(splits)
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("data_report.html").render(
        splits=describe_splits(splits),
        findings=worst_first(findings),
        kinds=KINDS,
        shown_per_kind=SHOWN_PER_KIND,
        draw=lambda picture: draw_picture(picture, class_names),
        severities={name: sum(KINDS[found.kind].severity == name for found in findings) for name in SEVERITIES},
        coverage=diagnosis.coverage,
        ious=[str(iou) for iou in COVERAGE_IOUS],
        config=config,
        figures=overview(splits, config),
        sheets={examined.split.name: contact_sheet(examined, class_names) for examined in splits},
        augmented=augmented,
    )
    write_text(path, page)


def _shorten(text: str, width: int) -> str:
    text = visible(" ".join(text.split()))
    return text if len(text) <= width else text[: width - 1] + "…"
