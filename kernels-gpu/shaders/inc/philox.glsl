// First word that Philox 4x32-10 (Salmon et al. 2011) makes of a key and a number of 64 bits, as kernels-cpu draws dropout.
uint philox(uvec2 key, uint low, uint high) {
    uvec4 c = uvec4(low, high, 0u, 0x64726f70u);
    for (int round_ = 0; round_ < 10; round_++) {
        uint high0, low0, high1, low1;
        umulExtended(0xD2511F53u, c.x, high0, low0);
        umulExtended(0xCD9E8D57u, c.z, high1, low1);
        c = uvec4(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
        key += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return c.x;
}
