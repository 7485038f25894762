"""Files whose bands do not fit the channels of a run: most of a list, so the run needs other options, or a few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from plsc_mae.data.check import FileReport
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.pixels import RGB_CHANNELS, PixelFormat
from plsc_mae.data.unreadable import CANNOT_READ
from plsc_mae.errors import remedies
from plsc_mae.wording import counted, guides


def describe_misfit(images: ImageList, reports: Mapping[int, FileReport], pixel_format: PixelFormat) -> str:
    """Return a clause with the options for a list most of whose files have the same bands, which do not fit.

    Returns:
        The clause; "" if no number of bands is the reason for most files.
    """
    counts = Counter(report.bands for report in reports.values() if report.bands)
    bands, number = counts.most_common(1)[0] if counts else (0, 0)
    if 2 * number <= len(images):
        return ""
    first = next(images.path(index) for index, report in reports.items() if report.bands == bands)
    several = remedies(f"give --in_chans {bands}", "--bands for some of them")
    gray = remedies("give --in_chans 1", "--pixel_range auto for RGB of three equal bands")
    advice = (gray if bands == 1 else several) or "convert them"
    wanted = "RGB" if pixel_format.is_rgb else counted(pixel_format.channels, "channel")
    return (
        f"{number} of {len(images)} files of {images.source} have {counted(bands, 'band')} and cannot be read as "
        f"{wanted}, the first is {first}: {advice}; see {guides('your-images')}"
    )


def reason_among(images: ImageList, index: int, report: FileReport, pixel_format: PixelFormat) -> str:
    """Return the reason why a file is bad, without the options for its bands: most other files fit the run's."""
    channels = pixel_format.channels
    fitting = (1, RGB_CHANNELS, RGB_CHANNELS + 1) if pixel_format.is_rgb else (channels,)
    if not report.bands or report.bands in fitting or len(images) == 1:
        return report.reason
    return (
        f"{CANNOT_READ}{images.path(index)}: it has {counted(report.bands, 'band')}, unlike the other files, "
        f"which fit the {counted(channels, 'channel')} of the network"
    )
