"""Write on a data sample without writing on the one that a data set keeps."""

from typing import Any

from mmengine.structures import BaseDataElement


def marked(sample: BaseDataElement, **fields: Any) -> BaseDataElement:
    """Return a data sample with more metainfo, which shares all else.

    ``BaseDataElement.new`` and ``set_metainfo`` copy all metainfo deeply,
    each time, and ``copy.copy`` would share the sets that list the fields,
    ``_metainfo_fields`` and ``_data_fields``, private names of mmengine.
    """
    copy: Any = object.__new__(type(sample))
    copy.__dict__.update(sample.__dict__)
    copy.__dict__['_metainfo_fields'] = set(sample._metainfo_fields)
    copy.__dict__['_data_fields'] = set(sample._data_fields)
    for name, value in fields.items():
        copy.set_field(value, name, field_type='metainfo')
    return copy
