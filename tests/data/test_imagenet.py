"""The classes of ImageNet-1k and names that contain them."""

from __future__ import annotations

from plsc_mae.data.imagenet import find_synset, synsets, validation_number


def test_sets_of_classes():
    whole = synsets()
    assert len(set(whole)) == 1000
    assert list(whole) == sorted(whole)
    assert (whole[0], whole[-1], whole[386]) == ("n01440764", "n15075141", "n02504458")  # African elephant
    for letter, first in (("a", "n01498041"), ("r", "n01443537")):
        part = synsets(letter)
        assert len(part) == 200
        assert part[0] == first
        assert set(part) <= set(whole)


def test_names():
    assert find_synset("n01440764") == "n01440764"
    assert find_synset("n01440764 tench, Tinca tinca") == "n01440764"
    assert find_synset("tench_n01440764") == find_synset("tench (n01440764)") == "n01440764"
    assert find_synset("n014407641") is None
    assert find_synset("Tinca") is None
    assert validation_number("val/n01440764/ILSVRC2012_val_00000293.JPEG") == 293
    assert validation_number("ILSVRC2012_val_293.JPEG") is None
