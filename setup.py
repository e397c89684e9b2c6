from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="dh_keras",
    version="0.1.0",
    description="Double-Head R-CNN for TensorFlow and Keras 3: train, evaluate and serve a two-headed detector",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["dh_keras", "dh_keras.*"]),
    package_data={"dh_keras.reports": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "tensorflow>=2.20,<2.21",
        "keras>=3.15,<3.16",
        "tf-models-official>=2.20,<2.21",
        "pycocotools>=2.0.11,<2.1",
        "numpy>=2.0,<2.5",
        "omegaconf>=2.3,<2.5",
        "Pillow>=11,<14",
        "tqdm>=4.66,<5",
        "psutil>=5.9,<8",
        "h5py>=3.11,<4",
        "matplotlib>=3.9,<4",
        "Jinja2>=3.1,<4",
        "opencv-python-headless>=4.9,<6",
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.12",
            "tensorflow-serving-api>=2.20,<2.21",
            "gradio>=6,<7",
            "playwright>=1.50,<2",
            "keras-hub>=0.21,<1",
            "nbclient>=0.10,<1",
            "ipykernel>=6.29,<8",
        ],
        "demo": ["gradio>=6,<7"],
        "hub": ["keras-hub>=0.21,<1"],
        "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.27,<2"],
        "convert": ["torch>=2.13,<2.14"],
        "serving": ["tensorflow-serving-api>=2.20,<2.21"],
    },
)
