"""The tensorboard package reads the event files that train/log/tensorboard.cc writes.

usage: witness_tensorboard.py TENSORBOARD_DOOR    (run it by tools/venv witness)
"""

import subprocess
import sys
import tempfile

from tensorboard.backend.event_processing import event_accumulator


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], folder], check=True)
        reader = event_accumulator.EventAccumulator(
            folder, size_guidance={event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}
        )
        reader.Reload()
        tags = reader.Tags()
        assert tags["scalars"] == ["loss/g"], tags
        points = [(event.step, event.value) for event in reader.Scalars("loss/g")]
        # The second file resumed at step 250: the first one's later points are purged.
        assert [step for step, _ in points] == list(range(260)), points[-20:]
        for step, value in points:
            expected = 1.0 / (step + 1) if step < 250 else -1.0
            assert abs(value - expected) <= 1e-7, (step, value)  # f32
        assert tags["tensors"] == ["samples"], tags
        (event,) = reader.Tensors("samples")
        assert event.step == 5
        assert event.tensor_proto.string_val[0].decode() == "**hello** wörld " + "x" * 300
        assert reader.summary_metadata["samples"].plugin_data.plugin_name == "text"
    print(f"{len(points)} points and one text read back by the tensorboard package")


if __name__ == "__main__":
    main()
