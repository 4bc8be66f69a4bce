// How products by cooperative matrices fall to a workgroup: a subgroup makes RM by RN matrices, a workgroup SM by SN subgroups.
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint SM = 2u;
layout(constant_id = 2) const uint SN = 2u;
layout(constant_id = 3) const uint RM = 4u;
layout(constant_id = 4) const uint RN = 4u;
// A matrix of the device: [TM, TK] times [TK, TN].
layout(constant_id = 5) const uint TM = 16u;
layout(constant_id = 6) const uint TN = 16u;
layout(constant_id = 7) const uint TK = 16u;
layout(constant_id = 8) const uint BK = 32u;
