import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "plsc_mae/__init__.py").read_text()).group(1)
# The site of the documents (`bash scripts/site.sh`), and what executes examples/tour.ipynb.
DOCS = ["mkdocs==1.6.1", "mkdocs-material==9.8.1", "mkdocstrings-python==2.0.11"]
NOTEBOOK = ["ipykernel==7.4.0", "nbclient==0.11.0"]


class BuildWithConfigs(build_py):
    """Adds the folder `configs` to the package, where `--config NAME` finds the recipes after an installation."""

    def run(self):
        super().run()
        if not self.editable_mode:
            installed = Path(self.build_lib) / "plsc_mae/configs"
            shutil.rmtree(installed, ignore_errors=True)  # an earlier build may have had other recipes
            shutil.copytree(ROOT / "configs", installed)


setup(
    name="plsc_mae",
    version=VERSION,
    description="Masked image modeling in PaddlePaddle: MAE, CAE and SimMIM; fine-tuning, probing, evaluation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["plsc_mae", "plsc_mae.*"]),
    package_data={
        "plsc_mae": ["py.typed"],
        "plsc_mae.data": ["imagenet_synsets.txt"],
        "plsc_mae.report": ["*.json"],
        "plsc_mae.weights": ["manifest.yaml"],
    },
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.26",
        "pillow>=10.1",
        "pyyaml>=6",
        "opencv-python-headless>=4.8",
        "visualdl>=2.5.3",
        "tqdm>=4.60",
        "safetensors>=0.4",
        "matplotlib>=3.7",
        "scipy>=1.11.3",
        "requests>=2.32",
        "urllib3>=2.2",
    ],
    extras_require={
        "cpu": ["paddlepaddle>=2.6.2,<4"],
        "gpu": ["paddlepaddle-gpu>=2.6.2,<4"],
        "parquet": ["pyarrow>=14"],
        "maps": ["scikit-learn>=1.5", "umap-learn>=0.5.6"],
        "dev": [
            *("pytest==9.2.0", "pytest-xdist==3.8.0", "ruff==0.17.6", "mypy==2.4.1", "types-PyYAML==6.0.12.20261113"),
            *("pyarrow>=14", "scikit-learn>=1.5"),  # tests compare metrics with scikit-learn
            *DOCS,
            *NOTEBOOK,
        ],
        "docs": DOCS,
        "notebook": NOTEBOOK,
        # Versions that work together; Python 3.13 has no package of paddle2onnx 2 nor of onnx 1.17.
        "onnx": [
            "paddle2onnx==2.1.0; python_version < '3.13'",
            "onnx==1.17.0; python_version < '3.13'",
            "onnxruntime>=1.17",
        ],
        "completion": ["argcomplete>=3"],
        "tensorboard": ["tensorboardX>=2.6", "tensorboard>=2.15"],
        "wandb": ["wandb>=0.16"],
        "parity": ["torch>=2.4", "transformers>=4.45"],
    },
    entry_points={"console_scripts": ["plsc-mae = plsc_mae.__main__:main"]},
)
