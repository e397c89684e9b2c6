"""Detect with a model on a running TensorFlow Serving."""

import argparse
import sys

from dh_keras.commands.parser import CommandParser, any_path, make_main


def make_parser() -> CommandParser:
    parser = CommandParser(
        "serve-client",
        __doc__,
        words={"images": ("IMAGE_OR_DIR...", "photographs, and folders of them")},
        overrides=False,
    )
    parser.usage = "%(prog)s IMAGE_OR_DIR... (--rest URL | --grpc HOST:PORT) --model NAME --output OUTPUT [options]"
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--rest", metavar="URL", help="REST address of the server, such as http://localhost:8501")
    server.add_argument("--grpc", metavar="HOST:PORT", help="gRPC address of the server, such as localhost:8500")
    parser.add_argument("--model", required=True, metavar="NAME", help="name of the model on the server")
    parser.add_argument("--version", type=int, metavar="N", help="number of its version; the newest if not given")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an answer")
    parser.add_argument("--score", type=float, default=0.5, help="write detections that score more than this")
    parser.add_argument("--output", type=any_path, required=True, help="new .json file, or folder for predictions.json")
    return parser


def run(args: argparse.Namespace) -> None:
    from dh_keras.inference.prediction.sources import describe_left_out, list_sources
    from dh_keras.serving.client import GrpcClient, RestClient, predict_on_server

    paths = list_sources(args.images)
    kind, server = (RestClient, args.rest) if args.rest else (GrpcClient, args.grpc)
    client = kind(server, args.model, version=args.version, timeout=args.timeout)
    print(f"server: {server}, model {args.model}; {len(paths)} image(s), score above {args.score}")
    if left_out := describe_left_out(args.images):
        print(left_out)
    faults = predict_on_server(client, paths, args.output, score=args.score)
    print(f"written: {args.output} ({len(paths) - len(faults)} image(s))")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)


main = make_main(make_parser, run)
