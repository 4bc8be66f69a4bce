//! Plots, heat maps and the self-contained HTML report.
