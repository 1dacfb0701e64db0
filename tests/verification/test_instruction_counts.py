"""Instructions of a kernel, by loop."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from verification.instruction_counts import loops_of

CODE = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FFMA R2, R3, R4, R2 ;
.L_x_1:
        /*0020*/                   HGMMA.64x32x8.F32.TF32 R24, R4, gdesc[UR4], !UPT ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_2);
        /*0070*/                   NOP;
"""


def test_loops_are_counted_as_often_as_they_are_gone_through():
    whole = loops_of(CODE)
    assert whole.shape() == [2, 2]
    assert whole.count([3, 5]) == 2 + 3 * (2 + 5 * 2)
    assert whole.loops[0].loops[0].opcodes == {"HGMMA": 1, "BRA": 1}
    with pytest.raises(ValueError, match="a number for each of the loops"):
        whole.count([3])
