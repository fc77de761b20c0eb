// How kernels share their work among threads.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

// Call `run(first, last)` for parts of `n` things, `team` of them at once; `stop(part, first)` says where a part ends.
template <class Stop, class Run>
void in_parts_to(int64_t n, int64_t team, const Stop &stop, const Run &run) {
    std::vector<std::thread> others;
    int64_t first = 0;
    for (int64_t part = 1; part < team; part++) {
        const int64_t last = stop(part, first);
        try {
            others.emplace_back(run, first, last);
        } catch (const std::exception &) {  // no more threads or memory are to be had: the caller does it all
            break;
        }
        first = last;
    }
    run(first, n);
    for (auto &other : others) other.join();
}

// The parts are equal, each a multiple of `step`.
template <class Run>
void in_parts(int64_t n, int64_t step, int64_t team, const Run &run) {
    in_parts_to(n, team, [&](int64_t part, int64_t) { return n * part / team / step * step; }, run);
}

// How many threads so much work is worth, of which `share` is worth one.
inline int64_t team_for(int64_t work, int64_t share, int threads) {
    return std::max<int64_t>(1, std::min<int64_t>(threads, work / share));
}
