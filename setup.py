"""Packaging. Settings of ruff, pyright and pytest are in pyproject.toml. Exact versions of tested installs
are in requirements.lock (Python 3.11), requirements-py312.lock (3.12 and later) and requirements-parity.lock
(the extra "parity", on 3.11)."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are the oldest versions that are expected to work. The tests use the versions of the lock
# files: JAX 0.10 with transformers 4.57 on Python 3.11, JAX 0.12 with transformers 5 on later ones.
INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.8.1",
    # Lazy imports of realcustom_jax, and the path type of Orbax and TFDS.
    "etils[epath,epy]>=1.9",
    "filelock>=3.15.4",
    "flax>=0.12",
    "grain>=0.2.18",
    "huggingface_hub>=0.34",
    # Plurals of target words.
    "inflect>=7.3",
    # tensorflow-datasets imports it but does not declare it.
    "importlib_resources>=6.0",
    "jax>=0.10",
    "ml_collections>=1.0",
    "ml_dtypes>=0.5",
    "msgpack>=1.0",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    # 10.1 brought the scalable default font for the demo sheet.
    "pillow>=10.1",
    # Reads data sets in parquet files.
    "pyarrow>=18",
    # Masks in COCO's formats. The tests pass from 2.0.8 on.
    "pycocotools>=2.0.8",
    # First version that reads and writes bfloat16 in numpy.
    "safetensors>=0.8",
    # JAX requires it too; the bootstrap of evaluation.metrics needs its `rng` argument.
    "scipy>=1.15",
    # First version whose builders and readers run without tensorflow.
    "tensorflow-datasets>=4.9.10",
    # Scalars for TensorBoard, without TensorBoard or TensorFlow.
    "tensorboardX>=2.6.2",
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=4.57.1",
]

EXTRAS_REQUIRE = {
    # data.prepare on a cluster. Beam needs older pyarrow, protobuf and pillow than requirements.lock has, so
    # install it in a separate environment.
    "beam": ["apache-beam>=2.77"],
    "tpu": ["jax[tpu]>=0.10"],
    # Plots and ImageReward, which installs PyTorch.
    "eval": ["adjustText>=1.3", "image-reward>=1.5", "matplotlib>=3.8"],
    # Finds the face on a reference. OpenCV 5 has no cascades.
    "faces": ["opencv-python-headless>=4.10,<5"],
    # The page. From 6.18 on, Gradio needs huggingface_hub 1.2, and so transformers 5.
    "studio": ["gradio>=6.14,<7"],
    "convert": ["torch>=2.6"],  # .bin and .pth weights; 2.6 made weights_only safe
    # PyTorch models to compare with and, as a second oracle, Flax models (removed in diffusers 0.40 and
    # transformers 5). transformers[flax] would need a JAX of 2023.
    "parity": ["diffusers>=0.39,<0.40", "torch>=2.6", "transformers>=4.57.1,<5"],
    # adjustText and matplotlib are for `make report` and its tests, OpenCV is for the extra "faces", Gradio
    # for "studio". Playwright drives a browser that is installed, and axe checks accessibility. The "nodejs"
    # extra of pyright installs Node as a package; otherwise pyright would download it at run time.
    "test": [
        "adjustText>=1.3",
        "axe-playwright-python>=0.1.6",
        "gradio>=6.14,<7",
        "matplotlib>=3.8",
        "opencv-python-headless>=4.10,<5",
        "playwright>=1.50",
        "pyright[nodejs]>=1.1.408",
        "pytest>=8.3",
        "pytest-xdist>=3.6.1",
        "ruff>=0.14",
    ],
}

setup(
    name="realcustom_jax",
    version="0.1.0",
    description="RealCustom in JAX and Flax: real-time generation of one given subject from text",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    packages=find_packages(include=["realcustom_jax", "realcustom_jax.*"]),
    package_data={"realcustom_jax.toybox": ["model/**"], "realcustom_jax.evaluation": ["judge/*"]},
    # Model folders are read as files, so the package cannot run from a zip.
    zip_safe=False,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
