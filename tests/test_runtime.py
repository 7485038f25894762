"""CPU settings as a function of machine, launcher and what the user has set."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import paddle  # noqa: F401  some tests are about a process that has imported it
import pytest

from plsc_mae import runtime
from plsc_mae.runtime import SETTINGS, SWITCH, cpu_settings

pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[1]


def settings(environ: dict[str, str] | None = None, cores: int = 8, *, amd: bool = False, gpu: bool = True):
    return cpu_settings(environ or {}, cores, amd=amd, gpu=gpu)


def test_intel_gets_its_cores_and_no_debug_type():
    assert settings() == {"MKL_NUM_THREADS": "8"}


def test_amd_is_told_to_take_the_fast_kernels():
    assert settings(cores=2, amd=True) == {"MKL_NUM_THREADS": "2", "MKL_DEBUG_CPU_TYPE": "5"}


def test_views_are_switched_off_where_only_a_cpu_computes():
    assert settings(gpu=False) == {"MKL_NUM_THREADS": "8", "FLAGS_use_stride_kernel": "0"}
    assert set(settings(amd=True, gpu=False)) == set(SETTINGS)


@pytest.mark.parametrize(
    ("cores", "processes", "threads"), [(8, 1, "8"), (8, 2, "4"), (8, 3, "2"), (2, 2, "1"), (2, 8, "1")]
)
def test_processes_of_a_node_share_its_cores(cores, processes, threads):
    assert settings({"PADDLE_LOCAL_SIZE": str(processes)}, cores) == {"MKL_NUM_THREADS": threads}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_user_has_set_stays(name):
    assert set(settings({name: "3"}, amd=True, gpu=False)) == set(SETTINGS) - {name}
    assert settings(dict.fromkeys(SETTINGS, "3"), amd=True, gpu=False) == {}


def test_the_launchers_single_omp_thread_does_not_count():
    assert settings({"OMP_NUM_THREADS": "1"}) == {"MKL_NUM_THREADS": "8"}


def test_switched_off():
    for word in ("off", "OFF", "0", "false", "no"):
        assert settings({SWITCH: word}, amd=True, gpu=False) == {}
    assert settings({SWITCH: "on"}) == settings()


def test_importing_the_package_applies_the_settings_and_a_png_can_be_written_after_paddle():
    """Paddle 2.6.2 exports functions of zlib, and a Pillow loaded after it crashed in them."""
    script = (
        "import os, sys, plsc_mae; print(os.environ['MKL_NUM_THREADS'], 'paddle' in sys.modules)\n"
        "import io, paddle; from PIL import Image; Image.effect_noise((64, 64), 50).save(io.BytesIO(), 'png')"
    )
    environ = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, SWITCH)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{runtime.available_cores()} False\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_an_import_after_paddle_is_named(monkeypatch):
    for name in (*SETTINGS, SWITCH):
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(UserWarning, match="MKL_NUM_THREADS.*import plsc_mae first.*PLSC_MAE_CPU_SETTINGS=off"):
        assert runtime.apply_cpu_settings() == {}
    assert "MKL_NUM_THREADS" not in os.environ
    monkeypatch.setenv(SWITCH, "off")
    assert runtime.apply_cpu_settings() == {}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep freed memory")
def test_freed_memory_is_kept():
    """Without the setting, each block of 40 MB gets new pages, which faults up to 10,000 times."""
    assert runtime.keep_freed_memory()
    libc, size = ctypes.CDLL(None), 40_000_000
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(libc.malloc(size))
        libc.memset(block, 1, ctypes.c_size_t(size))
        libc.free(block)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 10


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: object())
    assert not runtime.keep_freed_memory()


def test_the_switch_leaves_the_allocator_alone(monkeypatch):
    called = []
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: called.append(1))
    monkeypatch.setattr(runtime, "has_gpu", lambda: False)
    monkeypatch.setenv(SWITCH, "off")
    runtime.apply_cpu_settings()
    assert not called


def test_what_the_machine_tells():
    assert runtime.available_cores() >= 1
    assert runtime.local_processes({}) == 1
    assert runtime.local_processes({"PADDLE_LOCAL_SIZE": "4"}) == 4
    assert runtime.is_amd() in (True, False)
