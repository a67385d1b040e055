"""Files that are written whole or not at all."""

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend


@register_backend('infobatch_atomic')
class AtomicLocalBackend(LocalBackend):
    """Write files of the local disk whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write to a temporary file, and rename it once it is on the disk."""
        temporary = f'{filepath}.tmp'
        super().put(obj, temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, filepath)

    def put_text(
        self, obj: str, filepath: str | Path, encoding: str = 'utf-8'
    ) -> None:
        """Write text as :meth:`put` writes bytes."""
        self.put(obj.encode(encoding), filepath)
