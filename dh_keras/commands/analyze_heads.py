"""Compare fc-head and conv-head as the paper's section 3.

They are compared on sliding windows around annotated objects.
"""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main, require_paths


def make_parser() -> CommandParser:
    parser = CommandParser(
        "analyze-heads",
        __doc__,
        words={
            "models": ("MODEL [MODEL2]", "run of double_head_ext, or two runs, one of single_fc and one of single_conv")
        },
    )
    parser.add_argument("--annotations", type=any_path, required=True, help="COCO JSON file")
    parser.add_argument("--images", type=any_path, required=True, help="folder of its images")
    parser.add_argument(
        "--output", type=any_path, help="new folder for heads.json and the figures; MODEL/heads if not given"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="look only at the first N images that have objects")
    return parser


def run(args: argparse.Namespace) -> None:
    require_paths(*args.models, args.annotations, args.images)
    from dh_keras.reports.heads.analysis import analyze_heads, format_heads

    print(f"models: {' '.join([*args.models, *args.overrides])}")
    results, folder = analyze_heads(
        args.models,
        annotations=args.annotations,
        images=args.images,
        output=args.output,
        limit=args.limit,
        overrides=args.overrides,
    )
    print(format_heads(results))
    print(f"written: {folder}")


main = make_main(make_parser, run)
