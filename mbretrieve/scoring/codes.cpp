// MaxSim of one query with compressed tokens (see CompressedTokens): 16 query tokens at a time, a lane each, from the
// codes straight to the sum over maxima, so that nothing but the tables is read twice.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 16;
constexpr int AT_ONCE = 8;  // tokens whose sums are kept in registers together
constexpr int GROUP = 128;  // codes that are made numbers together
constexpr int64_t SHARE = 1 << 16;  // tokens that are worth a thread

typedef float Lanes __attribute__((vector_size(4 * LANES)));  // tables are aligned so

struct Asked {
    const float *tables;  // by numbers: (codes, LANES), else (codes, 256, LANES)
    const float *coarse;  // (L, LANES)
    const float *scales;  // (256)
    int codes;
    bool numbers;
};

struct Kept {
    const uint8_t *codes;  // (T, codes + 1)
    const void *assignments;
    bool wide;         // four bytes, not two
    int64_t centroids;
};

inline Lanes load(const float *from) { return *reinterpret_cast<const Lanes *>(from); }

inline int64_t centroid(const Kept &kept, int64_t token) {
    return kept.wide ? static_cast<const uint32_t *>(kept.assignments)[token]
                     : static_cast<const uint16_t *>(kept.assignments)[token];
}

// The products of some tokens with 16 tokens of the query.
template <int N>
inline void products(const Asked &q, const Kept &kept, int64_t first, Lanes *out) {
    const int width = q.codes + 1;
    const uint8_t *codes = kept.codes + first * width;
    for (int t = 0; t < N; t++) out[t] = load(q.coarse + centroid(kept, first + t) * LANES);
    const float *table = q.tables;
    if (q.numbers) {
        float numbers[N][GROUP];
        for (int begin = 0; begin < q.codes; begin += GROUP) {
            const int count = q.codes - begin < GROUP ? q.codes - begin : GROUP;
            for (int t = 0; t < N; t++)
                for (int g = 0; g < count; g++) numbers[t][g] = codes[t * width + begin + g];
            for (int g = 0; g < count; g++, table += LANES) {
                const Lanes weights = load(table);
                for (int t = 0; t < N; t++) out[t] += weights * numbers[t][g];
            }
        }
    } else {
        for (int g = 0; g < q.codes; g++, table += 256 * LANES)
            for (int t = 0; t < N; t++) out[t] += load(table + codes[t * width + g] * LANES);
    }
    for (int t = 0; t < N; t++) out[t] *= q.scales[codes[t * width + q.codes]];
}

inline void raise_to(Lanes &most, const Lanes &some) { most = some > most ? some : most; }

// The sum of the maxima of the first `tokens` of 16 query tokens.
float score(const Asked &q, const Kept &kept, int tokens, int64_t start, int64_t length) {
    const int64_t stop = start + length;
    // A damaged file may name any centroid: nothing is read there, and the score says so.
    for (int64_t token = start; token < stop; token++)
        if (centroid(kept, token) >= kept.centroids) return std::numeric_limits<float>::quiet_NaN();
    Lanes most = Lanes{} - std::numeric_limits<float>::infinity(), some[AT_ONCE];
    if (length < AT_ONCE) {
        for (int64_t token = start; token < stop; token++) {
            products<1>(q, kept, token, some);
            raise_to(most, some[0]);
        }
    } else {
        for (int64_t token = start; token < stop; token += AT_ONCE) {
            products<AT_ONCE>(q, kept, std::min(token, stop - AT_ONCE), some);  // some twice: a maximum does not mind
            for (int t = 0; t < AT_ONCE; t++) raise_to(most, some[t]);
        }
    }
    float sum = 0;
    for (int i = 0; i < tokens; i++) sum += most[i];
    return sum;
}

}  // namespace

// The query's tables stand one after the other for each 16 of its tokens, zeros where there are none.
extern "C" void mbretrieve_score_codes(const float *tables, const float *coarse, const float *scales, int tokens,
                                       int codes_of_token, int numbers, const uint8_t *codes, const void *assignments,
                                       int wide, int64_t centroids, const int64_t *starts, const int64_t *lengths,
                                       int64_t documents, float *out, int threads) {
    const Kept kept{codes, assignments, wide != 0, centroids};
    const int64_t entries = int64_t(codes_of_token) * (numbers ? 1 : 256) * LANES;
    auto run = [&](int64_t first, int64_t last) {
        Asked asked{tables, coarse, scales, codes_of_token, numbers != 0};
        for (int64_t d = first; d < last; d++) out[d] = 0;
        for (int begin = 0; begin < tokens; begin += LANES) {
            const int count = std::min(tokens - begin, LANES);
            for (int64_t d = first; d < last; d++) out[d] += score(asked, kept, count, starts[d], lengths[d]);
            asked.tables += entries;
            asked.coarse += centroids * LANES;
        }
    };
    int64_t total = 0;
    for (int64_t d = 0; d < documents; d++) total += lengths[d];
    const int64_t team = std::max<int64_t>(1, std::min<int64_t>(threads, total / SHARE));
    std::vector<std::thread> others;
    int64_t first = 0, seen = 0;
    for (int64_t part = 1; part < team; part++) {
        int64_t last = first;
        while (last < documents && seen < total * part / team) seen += lengths[last++];
        try {
            others.emplace_back(run, first, last);
        } catch (const std::exception &) {  // no more threads or memory are to be had: the caller does it all
            break;
        }
        first = last;
    }
    run(first, documents);
    for (auto &other : others) other.join();
}
