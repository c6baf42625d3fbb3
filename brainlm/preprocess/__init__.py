"""From a raw recording to parcel series: arrays in, arrays out, one file per step."""
