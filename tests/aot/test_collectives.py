"""Collectives in a compiled program's text: kinds, sizes, and the module they belong to."""

from realcustom_jax.aot.collectives import by_part, total

HLO = """
  %all-reduce.1 = f32[128,64]{1,0:T(8,128)} all-reduce(f32[128,64] %x), channel_id=1
  %ags = (bf16[16,64]{1,0}, bf16[128,64]{1,0}) all-gather-start(bf16[16,64]{1,0} %y), dimensions={0}, metadata={op_name="jit(step)/jvp(UNet.encode_context)/mid_block/dot_general"}
  %agd = bf16[128,64]{1,0} all-gather-done((bf16[16,64], bf16[128,64]) %ags)
  %tuple = (f32[8]{0}, f32[4]{0}) all-reduce(f32[8]{0} %a, f32[4]{0} %b), to_apply=%add
  %ars = (f32[8]{0}, f32[4]{0}) all-reduce-start(f32[8]{0} %a, f32[4]{0} %b), to_apply=%add, metadata={op_name="jit(step)/jvp()/reduce_sum"}
  %cps = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(f32[6]{0} %d), metadata={op_name="jit(step)/transpose(jvp(UNet))/up_blocks_0/to_q"}
  %agx = f32[3]{0} all-gather(f32[1]{0} %f), metadata={op_name="jit(sample)/while/body/UNet/mid_block/conv"}
  %agj = f32[2]{0} all-gather(f32[1]{0} %f), metadata={op_name="jit(step)/jvp(jit(_take))/gather"}
  %agu = f32[10]{0} all-gather(f32[5]{0} %e), metadata={op_name="jit(step)/jvp(UNet)/down_blocks_0/conv"}
  %rs = f32[2]{0} reduce-scatter(f32[16]{0} %c), dimensions={0}
  %fusion = f32[9]{0} fusion(f32[9]{0} %all-reduce.1), kind=kLoop
"""  # noqa: E501


def test_total_counts_each_collective_once_with_result_bytes():
    assert total(by_part(HLO)) == {
        "all-gather": (4, 128 * 64 * 2 + 40 + 12 + 8),
        "all-reduce": (3, 128 * 64 * 4 + 2 * 12 * 4),
        "reduce-scatter": (1, 8),
        "collective-permute": (1, 24),
    }


def test_collectives_are_grouped_by_module_and_backward_pass():
    assert by_part(HLO) == {
        "UNet": {"all-gather": (3, 128 * 64 * 2 + 40 + 12)},
        "UNet, backward": {"collective-permute": (1, 24)},
        "rest": {
            "all-gather": (1, 8),
            "all-reduce": (3, 128 * 64 * 4 + 2 * 12 * 4),
            "reduce-scatter": (1, 8),
        },
    }
