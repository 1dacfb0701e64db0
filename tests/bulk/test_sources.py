"""Which images a run is made of, and what is read of them: files, rows of tables, members of shards, URLs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs nerve_kernels[bulk]")
pytest.importorskip("pycocotools", reason="needs nerve_kernels[bulk]")

import pyarrow as pa
import pyarrow.parquet as pq

from nerve_kernels.bulk.destination import INPUTS, Destination
from nerve_kernels.bulk.packed import Entry
from nerve_kernels.bulk.reading import ImageList, read_images
from nerve_kernels.bulk.sources import find_sources

AS_HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def names(*sources: object, column: str | None = None) -> list[str]:
    return [one.source for one in find_sources([str(source) for source in sources], column)]


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(stream, format="PNG")
    return stream.getvalue()


def read(*sources: object, column: str | None = None) -> dict[str, int | str]:
    """By id the red of an image, or its error; through the list that a run keeps."""
    entries = list(find_sources([str(source) for source in sources], column))
    table = pa.Table.from_pylist([one._asdict() for one in entries])
    found = {}
    for batch in read_images(table):
        for key, image, error in zip(batch["id"], batch["image"], batch["error"], strict=True):
            assert error or image.shape == (4, 5, 3)
            found[key] = error or int(image[0, 0, 0])
    assert found.keys() == {one.id for one in entries}
    return found


def tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def test_sources_are_listed_in_order_at_any_depth(tmp_path):
    for name in ("b/z.png", "b/deep/y.jpg", "a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/circle").symlink_to(tmp_path)
    below = [str(tmp_path / name) for name in ("a.png", "b/deep/y.jpg", "b/z.png")]
    assert names(tmp_path) == below
    (tmp_path / "b/circle").unlink()
    assert names(str(tmp_path / "**/*.png")) == [below[0], below[2]]
    assert names(str(tmp_path / "notes.txt")) == [str(tmp_path / "notes.txt")]
    assert names(f"file://{tmp_path}") == [f"file://{one}" for one in below]
    for empty in ("absent", "*.gif", "b/empty"):
        (tmp_path / "b/empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"expected images, got none"):
            names(str(tmp_path / empty))


def test_the_list_of_images_is_read_back_and_refuses_duplicates(tmp_path):
    destination = Destination(str(tmp_path / "out"))
    destination.open({})
    assert (
        destination.write_inputs((Entry(f"{number}.png", f"{number}.png") for number in range(10)), rows_per_group=4)
        == 10
    )
    images = ImageList(destination.filesystem, destination.inputs)
    tables = [table for task in images.get_read_tasks(1) for table in task()]
    assert [len(table) for table in tables] == [4, 4, 2]
    assert pa.concat_tables(tables)["id"].to_pylist() == [f"{number}.png" for number in range(10)]
    before = (tmp_path / "out" / INPUTS).read_bytes()
    with pytest.raises(ValueError, match=r"SOURCE: expected each image once, got b\.png twice"):
        destination.write_inputs((Entry(name, name) for name in ("a.png", "b.png", "c.png", "b.png")), rows_per_group=2)
    assert (tmp_path / "out" / INPUTS).read_bytes() == before


@pytest.mark.parametrize("large_groups", [True, False])
@pytest.mark.parametrize("kind", [AS_HUGGING_FACE, pa.binary(), pa.large_binary()])
def test_rows_of_parquet_are_images(tmp_path, kind, large_groups):
    contents = [png(value) for value in range(70)]
    contents[3] = b"no image"
    contents[66] = None
    is_struct = pa.types.is_struct(kind)
    values = [{"bytes": one, "path": None} for one in contents] if is_struct else contents
    table = pa.table({"text": ["x"] * 70, "image": pa.array(values, kind)})
    folder = tmp_path / "train.parquet"  # a folder of such files, as Spark writes them
    folder.mkdir()
    pq.write_table(table, folder / "0.parquet", row_group_size=1000 if large_groups else 7)
    pq.write_table(pa.table({"no": [1]}), folder / "statistics.parquet")  # some other table
    found = read(folder)
    name = str(folder / "0.parquet")
    expected = {f"{name}/{row}": row for row in range(70)}
    assert found == {**expected, f"{name}/3": f"{name}/3: not an image", f"{name}/66": f"{name}/66: no image"}


def test_rows_that_name_files_are_these_files(tmp_path):
    (tmp_path / "red.png").write_bytes(png(9))
    values = [{"bytes": None, "path": one} for one in ("red.png", str(tmp_path / "red.png"), "absent.png")]
    pq.write_table(pa.table({"image": pa.array(values, AS_HUGGING_FACE)}), tmp_path / "a.parquet")
    first, second, third = read(tmp_path / "a.parquet").values()
    assert (first, second, third) == (9, 9, f"{tmp_path}/absent.png: no such file")


def test_which_column_holds_images(tmp_path):
    two = pa.table({"before": pa.array([png(1)]), "after": pa.array([png(2)]), "id": [7]})
    file = tmp_path / "two.parquet"
    pq.write_table(two, file)
    with pytest.raises(ValueError, match=r"got before, after among before, after, id; name one with --column"):
        names(file)
    assert list(read(file, column="after").values()) == [2]
    with pytest.raises(ValueError, match="expected the column id with image files, got before, after among"):
        names(file, column="id")
    pq.write_table(two.rename_columns(["before", "image", "id"]), file)
    assert list(read(file).values()) == [2]
    pq.write_table(two.select(["id"]), file)
    with pytest.raises(ValueError, match="expected one column of image files, or one called image, got none among id"):
        names(file)
    with pytest.raises(ValueError, match="expected images, got none"):
        names(tmp_path)


def test_members_of_shards_are_images_and_keys_their_ids(tmp_path):
    shard = tar(
        tmp_path / "00.tar",
        {"a.png": png(1), "a.json": b"{}", "a.seg.png": png(2), "deep/b.JPG": png(3), "c.png": b"text", "d.png": b""},
    )
    tar(tmp_path / "01.tar", {"e.png": png(4)})
    found = read(tmp_path)
    assert found == {
        "a": 1,
        "deep/b": 3,
        "c": f"{shard}/c.png: not an image",
        "d": f"{shard}/d.png: not an image",
        "e": 4,
    }
    assert names(shard)[:2] == [f"{shard}/a.png", f"{shard}/deep/b.JPG"]
    tar(tmp_path / "01.tar", {"a.jpg": png(4)})
    destination = Destination(str(tmp_path / "out"))
    destination.open({})
    with pytest.raises(ValueError, match="SOURCE: expected each image once, got a twice"):
        destination.write_inputs(find_sources([str(tmp_path)]), rows_per_group=4)


@pytest.mark.parametrize(("name", "size"), [("a.tar", 700), ("a.parquet", 100)])
def test_a_damaged_file_is_refused_with_its_name(tmp_path, name, size):
    file = tmp_path / name
    if name == "a.tar":
        tar(file, {"a.png": png(1), "b.png": png(2)})
    else:
        pq.write_table(pa.table({"image": [png(1)]}), file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"SOURCE: {file}: unreadable \("):
        names(tmp_path)


def test_what_changed_since_it_was_listed_is_an_error_of_its_rows(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [png(1), png(2)]}), file)
    table = pa.Table.from_pylist([one._asdict() for one in find_sources([str(file)])])
    pq.write_table(pa.table({"image": [png(1)]}), file)
    (batch,) = read_images(table)
    assert batch["error"].tolist() == ["", f"{file}/1: no image"]
    file.write_bytes(b"nothing of the kind")
    (batch,) = read_images(table)
    assert all(error.startswith(f"{file}/{row}: unreadable (") for row, error in enumerate(batch["error"]))


def test_data_sets_that_hugging_face_saved(tmp_path):
    """As ``datasets`` 4 writes them: Arrow's stream format, and which files they are in state.json."""
    folder = tmp_path / "saved/train"
    folder.mkdir(parents=True)
    files = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for number, file in enumerate([*files, "cache-f00.arrow"]):
        schema = pa.schema([("image", AS_HUGGING_FACE), ("label", pa.int64())])
        with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for part in range(2):
                value = [{"bytes": png(10 * number + part), "path": "x.png"}]
                writer.write_batch(pa.record_batch([pa.array(value, AS_HUGGING_FACE), pa.array([1])], schema=schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file} for file in files]}))
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train"]}')
    assert read(tmp_path / "saved") == {
        f"{folder}/{files[0]}/0": 0,
        f"{folder}/{files[0]}/1": 1,
        f"{folder}/{files[1]}/0": 10,
        f"{folder}/{files[1]}/1": 11,
    }


def test_a_data_set_of_the_hub_is_the_files_it_consists_of(tmp_path, monkeypatch):
    """The hub's file system, with a folder in place of the hub."""
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    from nerve_kernels.bulk import sources

    class Hub(DirFileSystem):
        protocol = "hf"

        def __init__(self) -> None:
            super().__init__(path=str(tmp_path), fs=LocalFileSystem())

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    sources._filesystem.cache_clear()
    folder = tmp_path / "datasets/owner/name/data"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"image": pa.array([{"bytes": png(8)}], AS_HUGGING_FACE)}), folder / "train.parquet")
    (folder.parent / "README.md").touch()
    (folder.parent / "alone.png").write_bytes(png(7))
    url = "hf://datasets/owner/name"
    assert read(url) == {f"{url}/alone.png": 7, f"{url}/data/train.parquet/0": 8}
    sources._filesystem.cache_clear()


def test_urls_of_files_are_read(tmp_path):
    (tmp_path / "a b.png").write_bytes(png(5))
    tar(tmp_path / "c.tar", {"d.png": png(6)})
    assert read(f"file://{tmp_path}") == {f"file://{tmp_path}/a b.png": 5, "d": 6}
    with pytest.raises(ValueError, match="expected no query; where an object store is, AWS_ENDPOINT_URL says"):
        names("s3://bucket/a?region=x&endpoint_override=localhost:1")
