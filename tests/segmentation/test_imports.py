import subprocess
import sys

import pytest

import nerve_kernels.segmentation as segmentation


def test_importing_the_package_loads_no_model_library():
    code = (
        "import sys, nerve_kernels, nerve_kernels.segmentation, nerve_kernels.cli\n"
        "heavy = {'diffusers', 'transformers', 'matplotlib', 'typer', 'PIL', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_found_at_first_use():
    assert set(segmentation.__all__) <= set(dir(segmentation))
    for name in segmentation.__all__:
        assert getattr(segmentation, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nerve'"):
        segmentation.Nerve  # noqa: B018
