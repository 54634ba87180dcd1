import pytest
import ray.data

from cluster.resources import GIB, Pool


def test_arguments_of_a_fixed_pool() -> None:
    arguments = Pool(size=3, cpus=0.5, memory_gib=2).map_batches_arguments()
    compute = arguments.pop("compute")
    assert (compute.min_size, compute.max_size) == (3, 3)
    assert arguments == {
        "num_cpus": 0.5,
        "memory": 2 * GIB,
        "batch_size": None,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
    }


def test_a_growing_pool_has_a_minimum_and_a_maximum() -> None:
    pool = Pool(size=(1, 4))
    compute = pool.map_batches_arguments()["compute"]
    assert (compute.min_size, compute.max_size) == (1, 4)
    assert (pool.min_size, pool.max_size) == (1, 4)


def test_a_gpu_pool_with_a_batch_size() -> None:
    arguments = Pool(gpus=1).map_batches_arguments(batch_size=256)
    assert arguments["num_gpus"] == 1
    assert arguments["batch_size"] == 256


def test_a_gpu_pool_with_whole_blocks() -> None:
    arguments = Pool(gpus=0.5).map_batches_arguments()
    assert arguments["ray_remote_args_fn"]() == {"num_gpus": 0.5}
    assert (arguments["batch_size"], arguments.get("num_gpus")) == (None, None)


def test_a_pool_passes_on_custom_resources() -> None:
    assert Pool(resources={"crawl": 1}).map_batches_arguments()["resources"] == {"crawl": 1}


@pytest.mark.parametrize("size", [0, -1, (0, 2), (3, 2)])
def test_invalid_pool_sizes_are_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one actor"):
        Pool(size=size)


@pytest.mark.parametrize("resource", ["cpus", "gpus", "memory_gib"])
def test_negative_resources_are_refused(resource: str) -> None:
    with pytest.raises(ValueError, match=f"{resource} = -1: cannot be negative"):
        Pool(**{resource: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["CPU", "GPU", "memory", "object_store_memory"])
def test_resources_that_are_not_custom_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"resources = {{'{name}': 1}}: {name} is no custom resource; set cpus"):
        Pool(resources={name: 1})


@pytest.mark.parametrize("amount", [-1.0, float("nan")])
def test_negative_custom_resources_are_refused(amount: float) -> None:
    with pytest.raises(ValueError, match=f"resources.crawl = {amount}: cannot be negative"):
        Pool(resources={"crawl": amount})


def test_an_actor_takes_a_fraction_of_one_gpu_or_whole_gpus() -> None:
    assert [Pool(gpus=gpus).gpus for gpus in (0.25, 1, 2)] == [0.25, 1, 2]
    with pytest.raises(ValueError, match=r"gpus = 1\.5: must be a fraction of one GPU or a whole number"):
        Pool(gpus=1.5)


class CountCalls:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: object) -> dict[str, list[int]]:
        self.calls += 1
        return {"num_rows": [batch.num_rows], "calls": [self.calls]}  # type: ignore[attr-defined]


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_ray_data_accepts_the_arguments_and_passes_whole_blocks() -> None:
    blocks = ray.data.range(600, override_num_blocks=6)
    rows = blocks.map_batches(CountCalls, **Pool().map_batches_arguments()).take_all()
    assert [row["num_rows"] for row in rows] == [100] * 6
    assert max(row["calls"] for row in rows) == 6, "one actor processes all blocks"
