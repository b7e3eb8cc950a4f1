import warnings

import pytest
import torch

from eqdmri_monai.precision import bfloat16_is_fast, bfloat16_where_fast, cpu_flags

AVX2, AVX512 = {"sse2", "avx", "avx2", "fma"}, {"avx2", "avx512f", "avx512bw", "avx512_vnni"}


@pytest.mark.parametrize("more", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bfloat16_is_used_where_there_are_instructions_for_it(more):
    assert bfloat16_where_fast(True, "cpu", AVX512 | {more})
    assert not bfloat16_where_fast(False, "cpu", AVX512 | {more})


@pytest.mark.parametrize("flags", [AVX2, AVX512, set()])
def test_bfloat16_gives_way_to_fp32_where_there_are_none_and_that_is_said(flags):
    with pytest.warns(UserWarning, match=r"^amp: this CPU has no instructions for bfloat16 .* in fp32$"):
        assert not bfloat16_where_fast(True, torch.device("cpu"), flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not bfloat16_where_fast(False, "cpu", flags)


def test_a_gpu_gets_what_is_wanted():
    assert bfloat16_where_fast(True, "cuda:0", AVX2)
    assert not bfloat16_where_fast(False, "cuda:0", AVX2)


@pytest.mark.parametrize("name", ["flags\t\t", "Features\t"])
def test_flags_are_those_of_the_first_core(tmp_path, name):
    (tmp_path / "cpuinfo").write_text(
        f"processor\t: 0\nmodel name\t: avx9 CPU\n{name}: fpu avx2\n\n{name}: fpu other\n"
    )
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2"}
    assert cpu_flags(tmp_path / "none") == set()


def test_this_machine_is_asked_where_no_flags_are_given():
    assert bfloat16_is_fast("cpu") == bfloat16_is_fast("cpu", cpu_flags())
