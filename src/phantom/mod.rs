//! Drawn chest radiographs with findings, impressions and boxes: a licence-free test bed.
