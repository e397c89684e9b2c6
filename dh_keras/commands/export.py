"""Export a run for TensorFlow Serving, or as an ONNX file."""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main, require_paths
from dh_keras.modeling.constants import PRECISIONS, TARGETS


def make_parser() -> CommandParser:
    parser = CommandParser(
        "export", __doc__, words={"run": ("RUN", "run folder, as train and convert-checkpoint write it")}
    )
    parser.add_argument(
        "--output", type=any_path, required=True, help="folder to write; models/cells/1, with a number, for a server"
    )
    parser.add_argument(
        "--format", choices=("saved_model", "onnx"), default="saved_model", help="for TensorFlow Serving, or for others"
    )
    parser.add_argument(
        "--verify", nargs="+", type=any_path, default=[], metavar="IMAGE", help="compare detections in these"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the network's arithmetic")
    parser.add_argument("--target", choices=TARGETS, help="what will run the graph; default: what this machine has")
    return parser


def run(args: argparse.Namespace) -> None:
    require_paths(args.run, *args.verify)
    from dh_keras.inference.detector import Detector
    from dh_keras.serving.export import compare_detectors, export_saved_model
    from dh_keras.serving.onnx_export import export_onnx

    detector = Detector.load(args.run, args.overrides, precision=args.precision, target=args.target)
    if args.format == "onnx":
        export_onnx(detector, args.output)
        written = "model.onnx (images)"
    else:
        export_saved_model(detector, args.output)
        written = "signatures serving_default (image_bytes) and serve_image (images)"
    chosen = "as chosen" if args.target else "as this machine has"
    print(f"target: {detector.target}, {chosen}")
    print(f"written: {args.output}, {written}")
    if args.verify:
        print(compare_detectors(detector, Detector.load(args.output), args.verify))
    print(f"next: dh-keras predict {args.output} PHOTO.jpg --output predictions")


main = make_main(make_parser, run)
