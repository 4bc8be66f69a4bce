// Where element i (row-major over `push.dims`) of a strided view lies, beyond its offset. `strides` is an array of the push constants.
#define PLACE(i, strides, out_)                          \
    int out_ = 0;                                        \
    {                                                    \
        uint rest_ = (i);                                \
        for (int k_ = int(push.rank) - 1; k_ > 0; k_--) { \
            uint size_ = push.dims[k_];                  \
            out_ += int(rest_ % size_) * strides[k_];    \
            rest_ /= size_;                              \
        }                                                \
        out_ += int(rest_) * strides[0];                 \
    }
