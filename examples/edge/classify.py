"""Classify images on a small board with an exported model: ONNX Runtime, NumPy and Pillow, and nothing else.

python classify.py MODEL --images FOLDER           every image below a folder
python classify.py MODEL --camera 0                a camera, by OpenCV, until Ctrl-C or --seconds

MODEL is the folder that `optimum-cli dendritic export` wrote. The README beside this file goes through it step by step.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from counters import Counter, resident_bytes
from PIL import Image

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


class Classifier:
    """The graph, and how its images are prepared, as the files beside it say."""

    def __init__(self, folder: Path, provider: str, threads: int) -> None:
        there = onnxruntime.get_available_providers()
        wanted = [PROVIDERS[provider]] if provider != "auto" else list(PROVIDERS.values())
        chosen = [name for name in wanted if name in there]
        if not chosen:
            raise SystemExit(f"{provider} is not among the providers of this ONNX Runtime: {', '.join(there)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=chosen)
        self.input = self.session.get_inputs()[0]
        self.labels = json.loads((folder / "config.json").read_text()).get("id2label", {})
        file = folder / "preprocessor_config.json"
        prepare = json.loads(file.read_text()) if file.exists() else {}
        height, width = (side if isinstance(side, int) else 224 for side in self.input.shape[2:])
        self.size = (width, height)
        self.scale = prepare.get("rescale_factor", 1 / 255)
        self.mean = np.array(prepare.get("image_mean", [0.5] * 3), np.float32)[:, None, None]
        self.std = np.array(prepare.get("image_std", [0.5] * 3), np.float32)[:, None, None]
        self.dtype = np.float16 if "float16" in self.input.type else np.float32

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Pixels `[1, 3, height, width]`, scaled and normalised."""
        pixels = np.asarray(image.convert("RGB").resize(self.size), np.float32).transpose(2, 0, 1) * self.scale
        return ((pixels - self.mean) / self.std).astype(self.dtype)[None]

    def label(self, image: Image.Image) -> str:
        """The likeliest class."""
        scores = np.asarray(self.session.run(None, {self.input.name: self.prepare(image)})[0])
        index = str(int(np.argmax(scores)))
        return self.labels.get(index, index)


def from_folder(folder: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """(file, class if the images lie in folders of their classes, image), in order."""
    for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES):
        with Image.open(file) as image:
            yield str(file), file.parent.name if file.parent != folder else "", image.copy()


def from_camera(index: int) -> Iterator[tuple[str, str, Image.Image]]:
    """Frames, for as long as the camera gives any."""
    import cv2  # pyright: ignore[reportMissingImports]  # only here: pip install opencv-python-headless

    camera = cv2.VideoCapture(index)
    try:
        for frame in itertools.count():
            found, pixels = camera.read()
            if not found:
                return
            yield f"frame {frame}", "", Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    finally:
        camera.release()


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Classify, print a line for each image unless told otherwise, and return the figures."""
    classifier = Classifier(Path(arguments.model), arguments.provider, arguments.threads)
    source = from_folder(Path(arguments.images)) if arguments.images else from_camera(arguments.camera)
    first = next(source, None)
    if first is None:
        raise SystemExit("There is no image.")
    for _ in range(arguments.warmup):
        classifier.label(first[2])
    times, right, known = [], 0, 0
    with Counter.find() as counter:
        start = time.perf_counter()
        for name, truth, image in itertools.chain([first], source):
            before = time.perf_counter()
            label = classifier.label(image)
            times.append(time.perf_counter() - before)
            known, right = known + bool(truth), right + (truth == label)
            if not arguments.quiet:
                print(f"{name}: {label}")
            if arguments.seconds and time.perf_counter() - start > arguments.seconds:
                break
        elapsed = time.perf_counter() - start
        joules = counter.joules()
    milliseconds = np.array(times) * 1e3
    return {
        "provider": classifier.session.get_providers()[0],
        "images": len(times),
        "accuracy": right / known if known else None,
        "frames_per_second": len(times) / elapsed,
        "latency_ms": {f"p{p}": float(np.percentile(milliseconds, p)) for p in (50, 90, 99)},
        "resident_bytes": resident_bytes(),
        "joules_per_frame": None if joules is None else joules / len(times),
        "energy_source": counter.source if joules is not None else None,
        "seconds": elapsed,
    }


def report(figures: dict) -> str:
    """The figures as lines; what is not known is "not measured"."""
    latency = ", ".join(f"{name} {value:.2f}" for name, value in figures["latency_ms"].items())
    joules = figures["joules_per_frame"]
    accuracy = figures["accuracy"]
    memory = figures["resident_bytes"]
    lines = [
        f"{figures['images']} images by {figures['provider']} in {figures['seconds']:.1f} s",
        *([] if accuracy is None else [f"accuracy: {accuracy:.4f}"]),
        f"frames per second: {figures['frames_per_second']:.1f}, reading the images included",
        f"latency, ms: {latency}",
        f"resident memory: {'not measured' if memory is None else f'{memory / 1e6:.1f} MB'}",
        f"joules per frame: {'not measured' if joules is None else f'{joules:.4g}, by ' + figures['energy_source']}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify images with an exported model.")
    parser.add_argument("model", help="The folder with model.onnx.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", help="A folder of images, by class or not.")
    source.add_argument("--camera", type=int, help="The number of a camera; needs OpenCV.")
    parser.add_argument("--provider", choices=["auto", *PROVIDERS], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (as many as there are cores).")
    parser.add_argument("--seconds", type=float, default=0, help="Stop after so many seconds (never).")
    parser.add_argument("--warmup", type=int, default=5, help="Runs before the first that counts (5).")
    parser.add_argument("--quiet", action="store_true", help="Print no line for each image.")
    parser.add_argument("--json", help="Also write the figures to this file.")
    arguments = parser.parse_args()
    figures = run(arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    print(report(figures))


if __name__ == "__main__":
    main()
